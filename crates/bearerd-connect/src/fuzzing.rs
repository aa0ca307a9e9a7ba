//! What holds for any query of the redirection endpoint. The property tests call this with bytes that they make up, a
//! target of `tests/fuzz` with those that reach new code. A rule that does not hold panics.

use bearerd_model::SecretText;
use url::form_urlencoded;

use crate::callback::CallbackQuery;

/// O-10, O-32: what passes reads the same to one who forgives everything, with each parameter once and either a code or an
/// error; what does not pass has nothing to exchange, and names a flow only if it names one.
pub fn callback(bytes: &[u8]) {
    let given = |name: &str| -> Vec<String> {
        let pairs = form_urlencoded::parse(bytes).filter(|pair| pair.0 == name);
        pairs.map(|pair| pair.1.into_owned()).collect()
    };
    match CallbackQuery::parse(bytes) {
        Ok(query) => {
            let state = query.state().map(|state| state.expose().to_owned());
            let callback = query.into_callback(None, Vec::new());
            assert!(callback.code.is_some() != callback.error.is_some());
            let exposed = |secret: Option<SecretText>| secret.map(|secret| secret.expose().to_owned());
            for (name, read) in [
                ("state", exposed(callback.state)),
                ("code", exposed(callback.code)),
                ("error", callback.error),
                ("error_description", callback.error_description),
                ("iss", callback.iss),
            ] {
                let given = given(name);
                assert!(given.len() < 2, "{name}");
                let given = given.into_iter().next().filter(|value| !value.is_empty());
                assert_eq!(read, given, "{name}");
                assert!(name != "state" || read == state);
            }
        }
        Err(malformed) => {
            let state = malformed.state.as_ref().map(|state| state.expose().to_owned());
            let burning = malformed.into_burning_callback(None, Vec::new());
            assert_eq!(burning.is_some(), state.is_some());
            let Some(burning) = burning else { return };
            assert!(burning.code.is_none() && burning.error.is_none() && burning.iss.is_none());
            assert_eq!(Some(given("state")), state.map(|state| vec![state]));
        }
    }
}
