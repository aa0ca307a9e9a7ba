//! One server, the primary that sentinels name, or a cluster: who is asked for the keys of a tag.

use std::{sync::Arc, time::Duration};

use bearerd_store::StoreError;
use redis::{Cmd, Value};

use crate::{
    cluster::{self, Cluster},
    link::{self, Failure, Link, Open, Request},
};

pub(crate) enum Servers {
    One(Arc<Link>),
    Cluster(Cluster),
}

impl Servers {
    /// For sentences.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::One(link) => link.name(),
            Self::Cluster(cluster) => cluster.name(),
        }
    }

    pub(crate) fn text(&self, what: &str) -> String {
        format!("{} {what}", self.name())
    }

    pub(crate) fn is_cluster(&self) -> bool {
        matches!(self, Self::Cluster(_))
    }

    /// Whether another server may take the place of one: then waiting a moment helps.
    pub(crate) fn moves(&self) -> bool {
        match self {
            Self::One(link) => link.moves(),
            Self::Cluster(_) => true,
        }
    }

    /// Whether a call that met this may be sent again, because nothing came of it and another server, or the same
    /// one a moment later, may take it.
    pub(crate) fn passes(&self, failure: &Failure) -> bool {
        self.moves()
            && match failure {
                Failure::NotSent(error) => matches!(error, StoreError::Unreachable(_)),
                Failure::Lost { .. } => false,
                Failure::Answered { error, .. } => cluster::is_passing(link::code(error)),
            }
    }

    /// Grows each time that writes may have been lost: another primary, or another life of the same.
    pub(crate) fn turns(&self) -> u64 {
        match self {
            Self::One(link) => link.turns(),
            Self::Cluster(cluster) => cluster.turns(),
        }
    }

    /// Every server that takes writes, as far as is known.
    pub(crate) fn primaries(&self) -> Vec<Arc<Link>> {
        match self {
            Self::One(link) => vec![Arc::clone(link)],
            Self::Cluster(cluster) => cluster.primaries(),
        }
    }

    pub(crate) async fn link(&self, tag: &str) -> Result<Arc<Link>, StoreError> {
        match self {
            Self::One(link) => Ok(Arc::clone(link)),
            Self::Cluster(cluster) => cluster.link(tag).await,
        }
    }

    pub(crate) async fn ask(&self, tag: &str, request: Request<'_>) -> Result<Value, Failure> {
        match self {
            Self::One(link) => link.ask(request).await,
            Self::Cluster(cluster) => cluster.ask(tag, request).await,
        }
    }

    /// As [`Link::ask_alone`].
    pub(crate) async fn ask_alone(
        &self,
        tag: &str,
        command: &Cmd,
        then: &Cmd,
        response_timeout: Duration,
    ) -> Result<[Value; 2], Failure> {
        match self {
            Self::One(link) => link.ask_alone(false, command, then, response_timeout).await,
            Self::Cluster(cluster) => cluster.ask_alone(tag, command, then, response_timeout).await,
        }
    }

    /// A connection for one user alone to who has the keys of `tag`.
    pub(crate) async fn alone(&self, tag: &str) -> Result<Alone, Failure> {
        let link = self.link(tag).await.map_err(Failure::NotSent)?;
        match link.alone().await {
            Ok(open) => Ok(Alone { link, open }),
            Err(failure) => Err(self.considered(tag, failure).await),
        }
    }

    /// Asks on a connection of [`Self::alone`].
    pub(crate) async fn ask_on(
        &self,
        tag: &str,
        alone: &mut Alone,
        command: &Cmd,
        response_timeout: Duration,
    ) -> Result<Value, Failure> {
        match alone.link.ask_on(&mut alone.open, command, response_timeout).await {
            Ok(value) => Ok(value),
            Err(failure) => Err(self.considered(tag, failure).await),
        }
    }

    async fn considered(&self, tag: &str, failure: Failure) -> Failure {
        if let Self::Cluster(cluster) = self {
            cluster.consider(tag, &failure).await;
        }
        failure
    }
}

/// A connection for one user alone.
pub(crate) struct Alone {
    link: Arc<Link>,
    open: Open,
}
