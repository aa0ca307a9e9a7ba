//! What every act on a stored record has in common: found or not, as expected or not, in force afterwards.

use bearerd_store::{Kind, Record, Revision, UpdateError, Versioned};

use crate::{ActError, Control, Written};

impl Control {
    /// # Errors
    /// `NotFound`, `Store`.
    pub(crate) async fn found<R: Record>(
        &self,
        what: &'static str,
        id: &str,
    ) -> Result<Versioned<R>, ActError> {
        let found = self.store.load::<R>(id).await?;
        found.ok_or_else(|| ActError::NotFound { what, id: id.to_owned() })
    }

    /// Writes `next` in the place of `stored`, as read a moment ago; leaves it where it is the `same`.
    ///
    /// # Errors
    /// `Changed`, `Store`.
    pub(crate) async fn put<R: Record>(
        &self,
        stored: Option<Versioned<R>>,
        next: R,
        expected: Option<Revision>,
        same: impl FnOnce(&R) -> bool,
    ) -> Result<Written<R>, ActError> {
        let created = stored.is_none();
        let revision = match stored {
            None if expected.is_some() => return Err(ActError::Changed),
            None => self.store.create(&next).await?,
            Some(stored) => {
                if expected.is_some_and(|expected| expected != stored.revision) {
                    return Err(ActError::Changed);
                }
                if same(&stored.record) {
                    return Ok(Written { versioned: stored, created: false });
                }
                self.store.replace(stored.revision, &next).await?
            }
        };
        let revision = revision.ok_or(ActError::Changed)?;
        self.in_force(R::KIND, next.id()).await;
        Ok(Written { versioned: Versioned { revision, record: next }, created })
    }

    /// # Errors
    /// `Changed`, `Store`.
    pub(crate) async fn remove<R: Record>(
        &self,
        kind: Kind,
        id: &str,
        revision: Revision,
        expected: Option<Revision>,
    ) -> Result<(), ActError> {
        if expected.is_some_and(|expected| expected != revision) {
            return Err(ActError::Changed);
        }
        if !self.store.delete::<R>(id, revision).await? {
            return Err(ActError::Changed);
        }
        self.in_force(kind, id).await;
        Ok(())
    }

    /// Changes a stored record in place.
    ///
    /// # Errors
    /// What `change` declines with; `NotFound`, `Changed`, `Store`.
    pub(crate) async fn alter<R: Record + Clone>(
        &self,
        what: &'static str,
        id: &str,
        expected: Option<Revision>,
        change: impl FnMut(&mut R) -> Result<(), ActError> + Send,
    ) -> Result<Versioned<R>, ActError> {
        let altered = match expected {
            None => self.store.update(id, change).await.map_err(act_error)?,
            Some(expected) => self.alter_at(id, expected, change).await?,
        };
        let altered = altered.ok_or_else(|| ActError::NotFound { what, id: id.to_owned() })?;
        self.in_force(R::KIND, id).await;
        Ok(altered)
    }

    async fn alter_at<R: Record>(
        &self,
        id: &str,
        expected: Revision,
        mut change: impl FnMut(&mut R) -> Result<(), ActError>,
    ) -> Result<Option<Versioned<R>>, ActError> {
        let Some(Versioned { revision, mut record }) = self.store.load::<R>(id).await? else {
            return Ok(None);
        };
        if revision != expected {
            return Err(ActError::Changed);
        }
        change(&mut record)?;
        let revision = self.store.replace(revision, &record).await?.ok_or(ActError::Changed)?;
        Ok(Some(Versioned { revision, record }))
    }
}

fn act_error(error: UpdateError<ActError>) -> ActError {
    match error {
        UpdateError::Declined(error) => error,
        UpdateError::Contended(_) => ActError::Changed,
        UpdateError::Store(error) => ActError::Store(error),
    }
}
