//! Attachments in memory: their bytes, and what is said about them.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::tables::Record;

#[derive(Clone, Debug)]
pub(crate) struct Attachment {
    /// `sys_attachment` fields.
    pub(crate) record: Record,
    pub(crate) content_type: String,
    pub(crate) content: Bytes,
    /// There was no room to hold it: it was counted and hashed, and cannot be downloaded.
    pub(crate) is_unheld: bool,
}

#[derive(Debug, Default)]
pub(crate) struct AttachmentStore {
    by_id: BTreeMap<String, Attachment>,
    content_bytes: usize,
}

impl AttachmentStore {
    /// `false` if there are too many attachments. Content that the memory has no room for is dropped.
    pub(crate) fn add(&mut self, sys_id: String, mut attachment: Attachment) -> bool {
        let content_bytes = self.content_bytes + attachment.content.len();
        if self.by_id.len() >= ATTACHMENTS_MAX {
            return false;
        }
        if content_bytes > CONTENT_BYTES_MAX {
            attachment.content = Bytes::new();
            attachment.is_unheld = true;
        } else {
            self.content_bytes = content_bytes;
        }
        self.by_id.insert(sys_id, attachment);
        true
    }

    pub(crate) fn get(&self, sys_id: &str) -> Option<&Attachment> {
        self.by_id.get(sys_id)
    }

    pub(crate) fn list(&self) -> impl Iterator<Item = &Attachment> {
        self.by_id.values()
    }

    pub(crate) fn remove(&mut self, sys_id: &str) -> bool {
        let removed = self.by_id.remove(sys_id);
        self.content_bytes -= removed.as_ref().map_or(0, |attachment| attachment.content.len());
        removed.is_some()
    }
}

const ATTACHMENTS_MAX: usize = 10_000;
const CONTENT_BYTES_MAX: usize = 128 * 1024 * 1024;
