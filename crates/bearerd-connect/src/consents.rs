//! What this door needs of the control: four acts and a name. A trait, so that the door's tests script the far side.

use std::future::Future;

use bearerd_control::{BegunConsent, Callback, ConsentFault, Control, LinkPage};
use bearerd_model::{ConsentOutcome, SecretText};

/// The acts behind the pages; each does what [`Control`]'s function of the same name says.
pub trait Consents: Send + Sync + 'static {
    fn link_page(&self, link: &SecretText) -> impl Future<Output = Result<LinkPage, ConsentFault>> + Send;

    fn begin_consent(
        &self,
        link: &SecretText,
    ) -> impl Future<Output = Result<BegunConsent, ConsentFault>> + Send;

    fn consent_cookie_name(&self, state: &SecretText) -> String;

    fn finish_consent(
        &self,
        callback: Callback,
    ) -> impl Future<Output = Result<ConsentOutcome, ConsentFault>> + Send;

    fn consent_outcome(&self, id: &str) -> impl Future<Output = Option<ConsentOutcome>> + Send;
}

impl Consents for Control {
    async fn link_page(&self, link: &SecretText) -> Result<LinkPage, ConsentFault> {
        Self::link_page(self, link).await
    }

    async fn begin_consent(&self, link: &SecretText) -> Result<BegunConsent, ConsentFault> {
        Self::begin_consent(self, link).await
    }

    fn consent_cookie_name(&self, state: &SecretText) -> String {
        Self::consent_cookie_name(self, state)
    }

    async fn finish_consent(&self, callback: Callback) -> Result<ConsentOutcome, ConsentFault> {
        Self::finish_consent(self, callback).await
    }

    async fn consent_outcome(&self, id: &str) -> Option<ConsentOutcome> {
        Self::consent_outcome(self, id).await
    }
}
