//! What was taken of a request's body, as far as it is kept: read before a backend is asked where a route
//! wants that, and whatever is little enough to be sent once more to another server.
//!
//! The first bytes are in memory. What exceeds it is in a file where the route names a directory, and
//! goes on as it comes where it doesn't.

use super::spill::{SpillFile, Unwritten, WRITE_BYTES};
use crate::config::model::{Buffer, Proxy, Spill};
use crate::http::session::{Upload, UploadError};
use crate::http::types::{Framing, Request};
use crate::net::send::FilePart;
use crate::runtime::executor::Core;
use crate::upstream::retry::{RetryPolicy, is_idempotent};

/// A body up to this size is kept for another try, where there may be one after it was sent.
const REPLAY_BYTES: usize = 16 << 10;

/// What was taken of a body, as far as it is kept.
pub(super) struct Replay {
    kept: Vec<u8>,
    /// What is kept behind that.
    file: Option<SpillFile>,
    /// Most bytes to keep in memory.
    most: usize,
    /// Bytes of both that this try has used.
    at: u64,
    /// More was taken than is kept.
    is_lost: bool,
    /// All of the body is kept.
    is_all: bool,
}

/// Why a body was not read before a backend is asked.
#[derive(Debug)]
pub(super) enum BufferError {
    /// The client's body failed.
    Upload(UploadError),
    /// There is no place for it.
    Unwritten(Unwritten),
}

impl BufferError {
    /// What to answer.
    pub(super) fn status(&self) -> u16 {
        match self {
            Self::Upload(error) => error.status(),
            Self::Unwritten(error) => error.status(),
        }
    }

    /// Tells the log what somebody has to look after.
    pub(super) fn log(&self, proxy: &Proxy) {
        if let (Self::Unwritten(Unwritten { errno, .. }), Some(spill)) = (self, &proxy.buffer.spill)
        {
            let directory = spill.directory.display();
            let status = self.status();
            tracing::error!(%directory, %errno, status, "a request's body can't be written to `spill`");
        }
    }
}

impl Replay {
    pub(super) fn new(request: &Request<'_>, policy: &RetryPolicy) -> Self {
        let may_repeat = policy.repeats_any_method || is_idempotent(request.method);
        Self {
            kept: Vec::new(),
            file: None,
            most: if may_repeat { REPLAY_BYTES } else { 0 },
            at: 0,
            is_lost: false,
            is_all: false,
        }
    }

    /// Reads the body, as much of it as may be kept, before a backend is asked.
    ///
    /// # Errors
    /// See [`BufferError`].
    pub(super) async fn buffer(
        &mut self,
        core: &Core,
        upload: &mut Upload<'_>,
        buffer: &Buffer,
    ) -> Result<(), BufferError> {
        let Some(bound) = buffer.request else {
            return Ok(());
        };
        let bound = usize::try_from(bound).unwrap_or(usize::MAX);
        self.most = self.most.max(bound);
        let memory = &mut self.kept;
        self.is_all = take(upload, memory, bound).await? || upload.is_ended();
        match &buffer.spill {
            // One that is known not to fit goes on as it comes: it would hold the backend all the same.
            Some(spill) if !self.is_all && upload.remaining() <= spill.size_max => {
                self.spill(core, upload, spill).await
            }
            _ => Ok(()),
        }
    }

    /// Reads what the memory has no room for.
    async fn spill(
        &mut self,
        core: &Core,
        upload: &mut Upload<'_>,
        spill: &Spill,
    ) -> Result<(), BufferError> {
        let file = self.file.insert(SpillFile::new(core, spill));
        let mut data = Vec::new();
        while !self.is_all && file.room() > 0 {
            let room = usize::try_from(file.room()).unwrap_or(usize::MAX);
            let ended = take(upload, &mut data, room.min(WRITE_BYTES)).await?;
            self.is_all = ended || upload.is_ended();
            if !data.is_empty() {
                let written = file.write(data).await;
                data = written.map_err(BufferError::Unwritten)?;
            }
        }
        Ok(())
    }

    /// How the body is framed for a backend: by its length once all of it is here.
    pub(super) fn framing(&self, upload: &Upload<'_>) -> Framing {
        match upload.framing() {
            Framing::Chunked if self.is_all && upload.trailers().is_empty() => {
                Framing::Length(self.length())
            }
            framing => framing,
        }
    }

    /// Bytes that are on a disk.
    pub(super) fn spilled(&self) -> u64 {
        self.file.as_ref().map_or(0, SpillFile::length)
    }

    /// Whether the body can be sent from its first byte.
    pub(super) fn is_whole(&self) -> bool {
        !self.is_lost
    }

    /// Begins anew.
    pub(super) fn rewind(&mut self) {
        self.at = 0;
    }

    /// Whether this try has used all that is kept.
    pub(super) fn is_used_up(&self) -> bool {
        self.at == self.length()
    }

    /// The next of it, at most `room` bytes, where that is in memory.
    pub(super) fn in_memory(&self, room: usize) -> Option<&[u8]> {
        let at = usize::try_from(self.at).ok()?;
        let left = self.kept.get(at..).filter(|left| !left.is_empty())?;
        Some(&left[..left.len().min(room)])
    }

    /// The next of it, at most `room` bytes, where that is on a disk.
    pub(super) fn on_disk(&self, room: usize) -> Option<FilePart> {
        let from = self.at.checked_sub(self.kept.len() as u64)?;
        let mut part = self.file.as_ref()?.part(from)?;
        part.length = part.length.min(room as u64);
        Some(part)
    }

    /// This many bytes of what was given last were used.
    pub(super) fn used(&mut self, bytes: usize) {
        self.at += bytes as u64;
    }

    /// Keeps what is sent now, or says that it isn't kept.
    pub(super) fn keep(&mut self, bytes: &[u8]) {
        let fits = self.file.is_none() && self.kept.len() + bytes.len() <= self.most;
        if !self.is_lost && fits {
            self.kept.extend_from_slice(bytes);
            self.at = self.length();
        } else if !bytes.is_empty() {
            self.lose();
        }
    }

    /// From here on it can't be sent again.
    pub(super) fn lose(&mut self) {
        self.is_lost = true;
        self.kept = Vec::new();
        self.file = None;
        self.at = 0;
    }

    fn length(&self) -> u64 {
        self.kept.len() as u64 + self.spilled()
    }
}

/// Takes content of a body until there are `bound` bytes. Says whether the body has ended.
async fn take(
    upload: &mut Upload<'_>,
    into: &mut Vec<u8>,
    bound: usize,
) -> Result<bool, BufferError> {
    while into.len() < bound {
        match upload.chunk().await {
            None => return Ok(true),
            Some(Err(error)) => return Err(BufferError::Upload(error)),
            Some(Ok(bytes)) => {
                let taken = bytes.len().min(bound - into.len());
                into.extend_from_slice(&bytes[..taken]);
                upload.consume(taken);
            }
        }
    }
    Ok(false)
}
