//! What was read of a response before the client wanted it, so that the backend is done sooner than a
//! slow client: first in memory, then in a file where the route names a directory.
//!
//! It holds content without its coding, in order: what is in memory, then the file, then what waits to
//! be written. Where it comes from and what the client gets is not known here.

use std::collections::VecDeque;
use std::task::Poll;

use rustix::io::Errno;

use super::spill::{SpillFile, Unwritten, WRITE_BYTES};
use crate::config::model::{Buffer, Spill};
use crate::http::session::{Cut, Piece};
use crate::net::send::FilePart;
use crate::runtime::executor::Core;

/// Pieces up to this size are joined, so that many small ones don't cost more than they hold.
const SMALL_BYTES: usize = 1 << 10;

/// Up to here.
const JOIN_BYTES: usize = 16 << 10;

/// Content that waits for the client.
///
/// Invariant: while `disk` has anything, nothing is added to `memory`, which comes before it.
pub(super) struct Ahead {
    memory: VecDeque<Piece>,
    /// Bytes in `memory`.
    bytes: usize,
    /// Most bytes in `memory`.
    most: usize,
    disk: Option<Disk>,
}

/// What exceeds the memory.
struct Disk {
    spill: Spill,
    file: Option<SpillFile>,
    /// Bytes of the file that were given to the client's connection.
    given: u64,
    /// What comes behind the file.
    tail: Vec<u8>,
    /// A write has failed: there will be no other one.
    failed: bool,
    /// What was to be written is lost.
    lost: bool,
    /// Bytes that were written in all.
    spilled: u64,
}

impl Ahead {
    /// As a route has it; `None`: nothing is read before the client wants it.
    pub(super) fn new(buffer: &Buffer) -> Option<Box<Self>> {
        let most = usize::try_from(buffer.response?).unwrap_or(usize::MAX);
        let disk = buffer.spill.as_ref().map(|spill| Disk {
            spill: spill.clone(),
            file: None,
            given: 0,
            tail: Vec::new(),
            failed: false,
            lost: false,
            spilled: 0,
        });
        Some(Box::new(Self {
            memory: VecDeque::new(),
            bytes: 0,
            most,
            disk,
        }))
    }

    /// Whether more may be received. Where not, the backend waits for the client.
    pub(super) fn has_room(&self) -> bool {
        let is_free = self.bytes < self.most;
        match &self.disk {
            None => is_free,
            Some(disk) if disk.is_empty() && is_free => true,
            Some(disk) if disk.failed => self.bytes + disk.tail.len() < self.most,
            Some(disk) => disk.tail.len() < disk.write_bytes(),
        }
    }

    /// Adds content. The last one may exceed the bounds by its own length.
    pub(super) fn push(&mut self, piece: Piece, core: &Core) {
        match &mut self.disk {
            Some(disk) if !disk.is_empty() || self.bytes >= self.most => disk.add(piece, core),
            _ => self.keep(piece, core),
        }
    }

    fn keep(&mut self, piece: Piece, core: &Core) {
        self.bytes += piece.length() as usize;
        self.memory.push_back(match piece {
            Piece::Received(mut buffer) if buffer.len() > SMALL_BYTES => {
                // Shared buffers are not for waiting with.
                buffer.detach();
                Piece::Received(buffer)
            }
            Piece::Received(buffer) => return self.join(&buffer),
            Piece::Bytes(bytes) => {
                self.join(&bytes);
                return core.recycle(bytes);
            }
            other => other,
        });
    }

    fn join(&mut self, bytes: &[u8]) {
        match self.memory.back_mut() {
            Some(Piece::Bytes(last)) if last.len() + bytes.len() <= JOIN_BYTES => {
                last.extend_from_slice(bytes);
            }
            _ => self.memory.push_back(Piece::Bytes(bytes.to_vec())),
        }
    }

    /// Goes on with what is to be written.
    pub(super) fn poll_disk(&mut self, core: &Core) {
        if let Some(disk) = &mut self.disk {
            disk.poll(core);
        }
    }

    /// The client's connection has all that was given until now.
    pub(super) fn given_is_gone(&mut self) {
        let Some(disk) = &mut self.disk else { return };
        if disk.is_used_up() {
            disk.file = None;
            disk.given = 0;
        }
        // A client that has caught up gets it without the way over a disk.
        if disk.file.is_none() && self.memory.is_empty() && !disk.tail.is_empty() {
            let bytes = std::mem::take(&mut disk.tail);
            self.bytes += bytes.len();
            self.memory.push_back(Piece::Bytes(bytes));
        }
    }

    /// What comes next, `None` where nothing is here; pending while it is on its way to the disk.
    ///
    /// # Errors
    /// [`Cut`] when it is lost.
    pub(super) fn poll_next(&mut self) -> Poll<Result<Option<Piece>, Cut>> {
        if let Some(piece) = self.memory.pop_front() {
            self.bytes -= piece.length() as usize;
            return Poll::Ready(Ok(Some(piece)));
        }
        let Some(disk) = &mut self.disk else {
            return Poll::Ready(Ok(None));
        };
        if let Some(part) = disk.next_part() {
            return Poll::Ready(Ok(Some(Piece::File(part))));
        }
        if disk.lost {
            let reason = "content was lost on its way to the disk";
            return Poll::Ready(Err(Cut { reason }));
        }
        match disk.is_writing() {
            true => Poll::Pending,
            false => Poll::Ready(Ok(None)),
        }
    }

    /// Bytes that were written to a disk in all.
    pub(super) fn spilled(&self) -> u64 {
        self.disk.as_ref().map_or(0, |disk| disk.spilled)
    }
}

impl Disk {
    fn is_empty(&self) -> bool {
        self.file.is_none() && self.tail.is_empty() && !self.lost
    }

    fn is_writing(&self) -> bool {
        self.file.as_ref().is_some_and(SpillFile::is_writing)
    }

    /// Whether there is a file of which nothing is to be given any more.
    fn is_used_up(&self) -> bool {
        let file = self.file.as_ref();
        file.is_some_and(|file| file.length() == self.given && !file.is_writing())
    }

    /// Bytes that are written at once.
    fn write_bytes(&self) -> usize {
        let room = match &self.file {
            Some(file) => file.room(),
            None => SpillFile::room_for(&self.spill),
        };
        usize::try_from(room).unwrap_or(usize::MAX).min(WRITE_BYTES)
    }

    fn add(&mut self, piece: Piece, core: &Core) {
        match piece {
            Piece::Received(buffer) => self.tail.extend_from_slice(&buffer),
            Piece::Bytes(bytes) => {
                self.tail.extend_from_slice(&bytes);
                core.recycle(bytes);
            }
            Piece::File(_) | Piece::Relay(_) => unreachable!("content that was received is bytes"),
        }
    }

    fn poll(&mut self, core: &Core) {
        self.take_written();
        let bytes = self.write_bytes();
        if self.failed || self.is_writing() || bytes == 0 || self.tail.len() < bytes {
            return;
        }
        let rest = self.tail.split_off(bytes);
        let data = std::mem::replace(&mut self.tail, rest);
        let file = self
            .file
            .get_or_insert_with(|| SpillFile::new(core, &self.spill));
        file.begin_write(data);
    }

    fn take_written(&mut self) {
        let Some(file) = self.file.as_mut().filter(|file| file.is_writing()) else {
            return;
        };
        let before = file.length();
        match file.poll_write() {
            Poll::Pending => {}
            Poll::Ready(Ok(mut emptied)) => {
                self.spilled += file.length() - before;
                if self.tail.is_empty() {
                    std::mem::swap(&mut self.tail, &mut emptied);
                }
            }
            Poll::Ready(Err(error)) => self.fail(error),
        }
    }

    /// From here on the backend waits for the client, as without a file.
    fn fail(&mut self, error: Unwritten) {
        let Unwritten { errno, data } = error;
        self.failed = true;
        self.say(errno);
        match data {
            Some(mut data) => {
                data.append(&mut self.tail);
                self.tail = data;
            }
            None => self.lost = true,
        }
    }

    fn say(&self, errno: Errno) {
        let directory = self.spill.directory.display();
        tracing::error!(%directory, %errno, "a response can't be written to `spill`: its backend waits for the client");
    }

    /// What of the file was not given yet.
    fn next_part(&mut self) -> Option<FilePart> {
        let part = self.file.as_ref()?.part(self.given)?;
        self.given += part.length;
        Some(part)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::super::spill::testing::{on_each_engine, read};
    use super::*;
    use crate::util::random::Random;

    const MEMORY: usize = 4 << 10;

    fn buffer(directory: Option<&std::path::Path>, size_max: u64) -> Buffer {
        Buffer {
            request: None,
            response: Some(MEMORY as u64),
            spill: directory.map(|directory| Spill {
                directory: directory.to_owned(),
                size_max,
                total_max: u64::MAX,
            }),
        }
    }

    /// The next content, as the client gets it; empty when there is none.
    async fn next(ahead: &mut Ahead, core: &Core) -> Vec<u8> {
        ahead.given_is_gone();
        let piece = poll_fn(|_| {
            ahead.poll_disk(core);
            ahead.poll_next()
        });
        match piece.await.unwrap() {
            Some(Piece::File(part)) => read(core, &part).await,
            Some(Piece::Bytes(bytes)) => bytes,
            Some(_) => panic!("nothing else was given"),
            None => Vec::new(),
        }
    }

    /// Lets two sides go on as a seed decides, and compares what went in with what came out. Gives the
    /// most that was in memory.
    async fn exchange(core: &Core, ahead: &mut Ahead, seed: u64, bytes: usize) -> usize {
        let mut random = Random::new(seed);
        let mut most = 0;
        let (mut given, mut taken) = (0, Vec::new());
        let byte = |at: usize| (at % 251) as u8;
        while taken.len() < bytes {
            // The one side is quicker for a while, then the other one.
            let client_is_slow = random.below(40) > 0;
            for _ in 0..random.below(200) {
                ahead.poll_disk(core);
                if given == bytes || !ahead.has_room() {
                    break;
                }
                let length = (bytes - given).min(1 + random.below(5000) as usize);
                let content = (given..given + length).map(byte).collect();
                ahead.push(Piece::Bytes(content), core);
                given += length;
                let tail = ahead.disk.as_ref().map_or(0, |disk| disk.tail.len());
                most = most.max(ahead.bytes + tail);
                core.yield_turn().await;
            }
            if !client_is_slow || given == bytes || !ahead.has_room() {
                taken.extend(next(ahead, core).await);
            }
        }
        let right = taken.iter().enumerate().all(|(at, had)| *had == byte(at));
        assert!(right, "seed {seed}: other bytes");
        assert_eq!(taken.len(), bytes, "seed {seed}: more bytes");
        assert!(next(ahead, core).await.is_empty());
        most
    }

    #[test]
    fn what_goes_in_comes_out_in_its_order_whoever_is_quicker() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().to_owned();
        on_each_engine(|core| {
            let path = path.clone();
            async move {
                for seed in 0..20 {
                    // Some have little room in their file, and one is no whole number of writes.
                    let size_max = [1 << 30, 1 << 20, 200_000, 1024][seed as usize % 4];
                    let mut ahead = Ahead::new(&buffer(Some(&path), size_max)).unwrap();
                    let most = exchange(&core, &mut ahead, seed, 3 << 20).await;
                    let bound = MEMORY + WRITE_BYTES + 2 * 5000;
                    assert!(most <= bound, "seed {seed}: {most} B in memory");
                    let disk = ahead.disk.as_ref().unwrap();
                    assert!(disk.spilled > 0, "seed {seed}");
                    assert!(disk.is_empty(), "seed {seed}");
                }
            }
        });
    }

    #[test]
    fn without_a_directory_and_after_a_failure_all_is_in_memory() {
        on_each_engine(|core| async move {
            for directory in [None, Some(std::path::Path::new("/nonexistent"))] {
                let mut ahead = Ahead::new(&buffer(directory, 1 << 30)).unwrap();
                let most = exchange(&core, &mut ahead, 7, 1 << 20).await;
                let bound = match directory {
                    None => MEMORY + 5000,
                    // What was to be written then.
                    Some(_) => MEMORY + 2 * WRITE_BYTES + 2 * 5000,
                };
                assert!(most <= bound, "{most} B in memory");
                assert_eq!(ahead.spilled(), 0);
            }
        });
    }

    #[test]
    fn a_client_that_keeps_up_is_given_all_from_memory() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().to_owned();
        on_each_engine(|core| {
            let path = path.clone();
            async move {
                let mut ahead = Ahead::new(&buffer(Some(&path), 1 << 30)).unwrap();
                for _ in 0..100 {
                    ahead.push(Piece::Bytes(vec![1; 3000]), &core);
                    assert_eq!(next(&mut ahead, &core).await.len(), 3000);
                }
                assert_eq!(ahead.spilled(), 0);
                assert!(ahead.disk.as_ref().unwrap().file.is_none());
            }
        });
    }

    #[test]
    fn small_pieces_are_joined() {
        on_each_engine(|core| async move {
            let mut ahead = Ahead::new(&buffer(None, 0)).unwrap();
            for _ in 0..1000 {
                assert!(ahead.has_room());
                ahead.push(Piece::Bytes(vec![1; 2]), &core);
            }
            assert_eq!(ahead.memory.len(), 1);
            assert_eq!(next(&mut ahead, &core).await.len(), 2000);
        });
    }
}
