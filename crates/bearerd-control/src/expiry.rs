//! The end of a refresh token's life: a person must consent again before. Who looks after the connections hears of it
//! 14, 7 and 1 days ahead, once for each threshold, whatever number of processes there is.
//!
//! A notice is written where a grant begins and comes due at the next threshold. Only then the connection is looked at:
//! a token that was rotated meanwhile has another end, and the notice is put off.

use std::time::Duration;

use bearerd_model::{Connection, ConnectionId, Grant, Lifecycle, UnixTime};
use bearerd_store::{DueRecord, ExpiryNotice, StoreError, Versioned};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use crate::{Control, gate::OBTAINING_MAX, publish::PAGE};

/// Days before the end, the farthest first.
const THRESHOLDS: [u32; 3] = [14, 7, 1];
const DAY: Duration = Duration::from_hours(24);
/// How often what is due is looked at.
const LOOK_EVERY: Duration = Duration::from_mins(1);
/// How often the tokens that end soon are counted. That looks at each whose next threshold is near, so not more often.
const COUNT_EVERY: Duration = Duration::from_hours(1);
/// Until the next look at a refresh token whose end is not known. A rotated one has an end that is.
const UNKNOWN_PAUSE: Duration = Duration::from_hours(7 * 24);

/// Days until `ends_at`, rounded up, once the farthest threshold is reached: what an operator sees. `None`: further
/// off, or over.
pub fn expires_soon(ends_at: UnixTime, now: UnixTime) -> Option<u32> {
    threshold(ends_at, now, Duration::MAX)?;
    let days = ends_at.since(now).as_millis().div_ceil(DAY.as_millis());
    u32::try_from(days).ok()
}

/// The nearest threshold that is reached. One at or above the whole `life` says nothing.
fn threshold(ends_at: UnixTime, now: UnixTime, life: Duration) -> Option<u32> {
    let left = ends_at.since(now);
    let reached = |days: &u32| !left.is_zero() && left <= DAY * *days && DAY * *days < life;
    THRESHOLDS.into_iter().rev().find(reached)
}

/// The life that the refresh token was granted. `MAX` where each refresh does not grant another: then its end is told
/// of once, however near it is.
fn life_of(connection: &Connection) -> Duration {
    let grant = connection.grant.as_ref().filter(|_| connection.exchanges.rotated);
    let life = grant.and_then(|grant| Some(grant.refresh_expires_at?.since(grant.refreshed_at)));
    life.unwrap_or(Duration::MAX)
}

/// When the next threshold is reached: the end itself after the last one.
fn next_look(ends_at: UnixTime, now: UnixTime) -> UnixTime {
    let at = THRESHOLDS.into_iter().map(|days| ends_at - DAY * days).find(|at| *at > now);
    at.unwrap_or(ends_at)
}

/// What a look at a due notice leads to.
#[derive(Debug, PartialEq, Eq)]
enum Look {
    /// There is nothing to expire.
    Forget,
    Put {
        next: ExpiryNotice,
        /// The threshold that is reached and was not announced, in days.
        tell: Option<u32>,
    },
}

/// `life`: see [`life_of`].
fn look(notice: &ExpiryNotice, grant: Option<&Grant>, life: Duration, now: UnixTime) -> Look {
    let Some(grant) = grant.filter(|grant| grant.refresh_token.is_some()) else { return Look::Forget };
    let connection = notice.connection.clone();
    let Some(ends_at) = grant.refresh_expires_at else {
        let next = ExpiryNotice { connection, ends_at: None, told_days: None, due_at: now + UNKNOWN_PAUSE };
        return Look::Put { next, tell: None };
    };
    if ends_at <= now {
        return Look::Forget;
    }
    let told = notice.told_days.filter(|_| notice.ends_at == Some(ends_at));
    let reached = threshold(ends_at, now, life);
    let tell = reached.filter(|days| told.is_none_or(|told| *days < told));
    let next = ExpiryNotice {
        connection,
        ends_at: Some(ends_at),
        told_days: tell.or(told),
        due_at: next_look(ends_at, now),
    };
    Look::Put { next, tell }
}

impl Control {
    /// Sees to it that the end of a refresh token that is about to come in is noticed; `ends_at` as far as it is known.
    /// Written before the grant is, so that no crash in between leaves a grant without.
    pub(crate) async fn expect_expiry(&self, id: &ConnectionId, ends_at: Option<UnixTime>) {
        let now = self.clock.now();
        // Not before the grant is there; until then there is nothing to expire.
        let earliest = now + OBTAINING_MAX;
        let due_at = match ends_at {
            None => now + UNKNOWN_PAUSE,
            Some(ends_at) if threshold(ends_at, now, Duration::MAX).is_some() => earliest,
            Some(ends_at) => next_look(ends_at, now).max(earliest),
        };
        if let Err(error) = self.put_notice(id, due_at, earliest).await {
            warn!(%error, connection.id = %id, "nobody will be told before the refresh token of connection {id} ends");
        }
    }

    async fn put_notice(
        &self,
        id: &ConnectionId,
        due_at: UnixTime,
        earliest: UnixTime,
    ) -> Result<(), StoreError> {
        loop {
            let written = match self.store.load::<ExpiryNotice>(id.as_str()).await? {
                None => {
                    let notice =
                        ExpiryNotice { connection: id.clone(), ends_at: None, told_days: None, due_at };
                    self.store.create(&notice).await?
                }
                // The new grant may not come, and the old one goes on to its end.
                Some(Versioned { revision, mut record }) => {
                    record.due_at = record.due_at.min(due_at).max(earliest);
                    self.store.replace(revision, &record).await?
                }
            };
            if written.is_some() {
                return Ok(());
            }
        }
    }

    /// The connection is gone.
    pub(crate) async fn forget_expiry(&self, id: &ConnectionId) {
        let forgotten = async {
            let notice = self.store.load::<ExpiryNotice>(id.as_str()).await?;
            if let Some(notice) = notice {
                self.store.delete::<ExpiryNotice>(id.as_str(), notice.revision).await?;
            }
            Ok::<_, StoreError>(())
        };
        if let Err(error) = forgotten.await {
            debug!(%error, "the expiry notice of connection {id} is forgotten when it is due");
        }
    }

    /// Tells of refresh tokens that end soon, until `closing` fires.
    pub(crate) async fn tell_of_expiry(&self, closing: &CancellationToken) {
        let work = async {
            let mut counted_at = None;
            loop {
                if let Err(error) = self.tell_what_is_due().await {
                    debug!(%error, "expiry notices cannot be read"); // `follow` tells of the store
                }
                let now = self.clock.now();
                if counted_at.is_none_or(|at| now >= at + COUNT_EVERY)
                    && self.count_expiring(now).await.is_ok()
                {
                    counted_at = Some(now);
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        tokio::select! {
            biased;
            () = closing.cancelled() => {}
            () = work => {}
        }
    }

    /// One look at every notice that is due.
    pub(crate) async fn tell_what_is_due(&self) -> Result<(), StoreError> {
        let until = self.clock.now();
        let mut after = None::<DueRecord>;
        loop {
            let due = self.store.due::<ExpiryNotice>(after.as_ref(), until, PAGE).await?;
            for due in &due {
                match self.look_at_notice(&due.id).await {
                    Err(error @ StoreError::Damaged { .. }) => {
                        debug!(%error, "an expiry notice is passed over");
                    }
                    result => result?,
                }
            }
            if due.len() < PAGE {
                return Ok(());
            }
            after = due.last().cloned();
        }
    }

    async fn look_at_notice(&self, id: &str) -> Result<(), StoreError> {
        let now = self.clock.now();
        let Some(notice) = self.store.load::<ExpiryNotice>(id).await? else { return Ok(()) };
        if notice.record.due_at > now {
            return Ok(()); // another process was faster
        }
        let connection = self.store.load::<Connection>(id).await?.map(|found| found.record);
        let grant = connection.as_ref().and_then(|connection| connection.grant.as_ref());
        let life = connection.as_ref().map_or(Duration::MAX, life_of);
        match look(&notice.record, grant, life, now) {
            Look::Forget => {
                self.store.delete::<ExpiryNotice>(id, notice.revision).await?;
            }
            // Written first: of all processes, the one whose write counts tells.
            Look::Put { next, tell } => {
                let is_mine = match self.store.replace(notice.revision, &next).await {
                    Ok(written) => written.is_some(),
                    // Told twice at worst: the next look would find it told.
                    Err(error @ StoreError::OutcomeUnknown(_)) => {
                        let stored = self.store.load::<ExpiryNotice>(id).await?;
                        if stored.is_none_or(|stored| stored.record != next) {
                            return Err(error); // looked at again
                        }
                        true
                    }
                    Err(error) => return Err(error),
                };
                if let (true, Some(threshold), Some(connection)) = (is_mine, tell, connection) {
                    self.tell(&connection, threshold, now);
                }
            }
        }
        Ok(())
    }

    fn tell(&self, connection: &Connection, threshold: u32, now: UnixTime) {
        let ends_at = connection.grant.as_ref().and_then(|grant| grant.refresh_expires_at);
        // Somebody must consent anyway.
        let is_dead = matches!(connection.lifecycle, Lifecycle::ReauthorizationRequired { .. });
        let Some(days_left) = ends_at.and_then(|ends_at| expires_soon(ends_at, now)).filter(|_| !is_dead)
        else {
            return;
        };
        self.work.metrics.expiry_notices.with_label_values(&[&threshold.to_string()]).inc();
        let id = &connection.id;
        let text = format!(
            "the refresh token of connection {id} ends in {days_left} day(s): bearerd connection reauthorize {id}"
        );
        let event = "connection.expires_soon";
        if threshold > 1 {
            warn!(event, connection.id = %id, integration.id = %connection.integration, days_left, threshold, "{text}");
        } else {
            error!(event, connection.id = %id, integration.id = %connection.integration, days_left, threshold, "{text}");
        }
    }

    /// Counts the tokens within each threshold. Their notices come due within the second farthest: by then the farthest
    /// was announced, and the next one is due.
    pub(crate) async fn count_expiring(&self, now: UnixTime) -> Result<(), StoreError> {
        let until = now + DAY * THRESHOLDS[1];
        let mut counts = [0_i64; THRESHOLDS.len()];
        let mut after = None::<DueRecord>;
        loop {
            let due = self.store.due::<ExpiryNotice>(after.as_ref(), until, PAGE).await?;
            for due in &due {
                let Ok(Some(notice)) = self.store.load::<ExpiryNotice>(&due.id).await else { continue };
                let Some(ends_at) = notice.record.ends_at.filter(|_| notice.record.told_days.is_some())
                else {
                    continue;
                };
                for (count, days) in counts.iter_mut().zip(THRESHOLDS) {
                    *count += i64::from(ends_at > now && ends_at.since(now) <= DAY * days);
                }
            }
            if due.len() < PAGE {
                break;
            }
            after = due.last().cloned();
        }
        for (count, days) in counts.into_iter().zip(THRESHOLDS) {
            self.work.metrics.expiring.with_label_values(&[&days.to_string()]).set(count);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use bearerd_model::{AccessToken, Generation, RefreshToken};

    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn in_days(days: f64) -> UnixTime {
        UnixTime::from_secs(NOW) + DAY.mul_f64(days)
    }

    #[test]
    fn each_threshold_is_reached_on_its_day() {
        let now = UnixTime::from_secs(NOW);
        for (days, reached, shown, next) in [
            (100.0, None, None, 86.0),
            (14.001, None, None, 0.001),
            (14.0, Some(14), Some(14), 7.0),
            (13.5, Some(14), Some(14), 6.5),
            (7.5, Some(14), Some(8), 0.5),
            (7.0, Some(7), Some(7), 6.0),
            (1.25, Some(7), Some(2), 0.25),
            (1.0, Some(1), Some(1), 1.0), // the end itself
            (0.25, Some(1), Some(1), 0.25),
            (0.0, None, None, 0.0),
        ] {
            let ends_at = in_days(days);
            assert_eq!(threshold(ends_at, now, Duration::MAX), reached, "{days}");
            assert_eq!(expires_soon(ends_at, now), shown, "{days}");
            assert_eq!(next_look(ends_at, now), in_days(next), "{days}");
        }
        assert_eq!(expires_soon(UnixTime::default(), now), None, "over");
    }

    fn grant(refresh_token: bool, refresh_expires_at: Option<UnixTime>) -> Grant {
        let token = RefreshToken::parse("rt".to_owned()).unwrap();
        Grant {
            generation: Generation(1),
            access_token: AccessToken::parse("at".to_owned()).unwrap(),
            access_lifetime: Duration::from_mins(30),
            access_expires_at: in_days(0.1),
            refresh_token: refresh_token.then_some(token),
            previous_refresh_token: None,
            refresh_expires_at,
            granted_at: UnixTime::from_secs(NOW),
            refreshed_at: UnixTime::from_secs(NOW),
            scope: None,
        }
    }

    fn notice(ends_at: Option<UnixTime>, told_days: Option<u32>, due_at: UnixTime) -> ExpiryNotice {
        ExpiryNotice { connection: ConnectionId::parse("c").unwrap(), ends_at, told_days, due_at }
    }

    #[test]
    fn a_threshold_is_told_once_and_a_moved_end_begins_anew() {
        let now = UnixTime::from_secs(NOW);
        let (near, far) = (Some(in_days(6.0)), Some(in_days(90.0)));
        for (name, held, told, ends_at, expected) in [
            ("first seen", None, None, near, (Some(7), Some(7), 5.0)),
            ("told before", near, Some(14), near, (Some(7), Some(7), 5.0)),
            ("told already", near, Some(7), near, (None, Some(7), 5.0)),
            ("nearer was told", near, Some(1), near, (None, Some(1), 5.0)),
            ("rotated", near, Some(7), far, (None, None, 76.0)),
            ("consented anew, and short", far, Some(7), near, (Some(7), Some(7), 5.0)),
        ] {
            let looked = look(&notice(held, told, now), Some(&grant(true, ends_at)), Duration::MAX, now);
            let (tell, told_days, due_in) = expected;
            let next = notice(ends_at, told_days, in_days(due_in));
            assert_eq!(looked, Look::Put { next, tell }, "{name}");
        }
    }

    #[test]
    fn what_cannot_expire_is_forgotten_or_put_off() {
        let now = UnixTime::from_secs(NOW);
        let held = notice(None, None, now);
        let look = |grant: Option<&Grant>| look(&held, grant, Duration::MAX, now);
        assert_eq!(look(None), Look::Forget);
        assert_eq!(look(Some(&grant(false, None))), Look::Forget);
        assert_eq!(look(Some(&grant(true, Some(now)))), Look::Forget);
        let next = notice(None, None, now + UNKNOWN_PAUSE);
        assert_eq!(look(Some(&grant(true, None))), Look::Put { next, tell: None });
    }

    /// A server that rotates grants a new life with each refresh: a threshold within it only is news.
    #[test]
    fn a_threshold_is_below_the_life_granted() {
        let now = UnixTime::from_secs(NOW);
        for (left, life_days, reached) in [
            (10.0, 10, None),
            (9.0, 10, None),
            (7.0, 10, Some(7)),
            (7.0, 7, None),
            (1.0, 7, Some(1)),
            (0.5, 1, None),
            (13.0, 90, Some(14)),
        ] {
            assert_eq!(threshold(in_days(left), now, DAY * life_days), reached, "{left}, {life_days}");
        }
    }
}
