//! What the posts count, for Prometheus. No owners and no names in labels.

use prometheus::{IntCounter, IntCounterVec, Registry, opts};

use super::{PostError, Posted};
use crate::queue::QueueError;

/// The counters.
#[derive(Debug)]
pub(super) struct Counts {
    posts: IntCounterVec,
    /// Keys forgotten before their time.
    pub(super) early: IntCounter,
}

impl Counts {
    /// Makes them.
    ///
    /// # Errors
    /// Their names are none.
    pub(super) fn new() -> Result<Self, prometheus::Error> {
        let posts =
            opts!("vault_messages_posted_total", "Messages that came by HTTP, by what became of them");
        let early = "vault_messages_keys_forgotten_early_total";
        Ok(Self {
            posts: IntCounterVec::new(posts, &["result"])?,
            early: IntCounter::new(
                early,
                "Keys of messages forgotten before their time: their owner had too many",
            )?,
        })
    }

    /// Registers them.
    ///
    /// # Errors
    /// They are registered already.
    pub(super) fn register(&self, registry: &Registry) -> Result<(), prometheus::Error> {
        registry.register(Box::new(self.posts.clone()))?;
        registry.register(Box::new(self.early.clone()))
    }

    pub(super) fn count(&self, posted: &Result<Posted, PostError>) {
        self.posts.with_label_values(&[label(posted)]).inc();
    }
}

fn label(posted: &Result<Posted, PostError>) -> &'static str {
    match posted {
        Ok(Posted { fresh: true, .. }) => "kept",
        Ok(Posted { fresh: false, .. }) => "repeated",
        Err(PostError::KeyReused) => "key_reused",
        Err(PostError::KeyLost) => "key_lost",
        Err(PostError::UnderWay | PostError::InDoubt { .. }) => "in_doubt",
        Err(PostError::Busy) => "busy",
        Err(PostError::Full { .. } | PostError::Queue(QueueError::Full { .. })) => "queue_full",
        Err(PostError::Stopped | PostError::Queue(QueueError::Stopped)) => "stopping",
        Err(_) => "failed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_post_is_counted_once_by_what_became_of_it() {
        let counts = Counts::new().unwrap();
        let registry = Registry::new();
        counts.register(&registry).unwrap();
        let posted = |fresh| Ok(Posted { id: "ID:1".to_owned(), fresh });
        let doubt = Err(PostError::InDoubt { why: "it is away".to_owned() });
        for result in [posted(true), posted(true), posted(false), doubt, Err(PostError::UnderWay)] {
            counts.count(&result);
        }
        let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        for line in ["{result=\"kept\"} 2", "{result=\"repeated\"} 1", "{result=\"in_doubt\"} 2"] {
            assert!(text.contains(&format!("vault_messages_posted_total{line}")), "{line}: {text}");
        }
    }
}
