//! A body in a file: what of it exceeds the memory that it may take.
//!
//! The file has no name, and goes with whoever holds it. To open, write and free it are jobs of helper
//! threads: a disk that is slow holds up one body and no core. Neither requests nor responses are known
//! here, nor what follows when a disk is full.

use std::any::Any;
use std::future::poll_fn;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use rustix::fs::ftruncate;
use rustix::io::{Errno, pwrite};

use super::account::{ACCOUNT, Account, Taken};
use crate::config::model::Spill;
use crate::net::send::{FilePart, Warmth};
use crate::runtime::direct::admission::DirectMode;
use crate::runtime::executor::Core;
use crate::runtime::fd::Fd;
use crate::runtime::future::Once;
use crate::runtime::op::{Job, Op, Output};
use crate::util::unnamed_file::unnamed_file;

/// Bytes that are worth a write. So much of a body is in memory beside what it may take there, and once
/// more while a write is on its way.
pub(super) const WRITE_BYTES: usize = 128 << 10;

/// A write that failed. The file has what it had before.
#[derive(Debug)]
pub(super) struct Unwritten {
    /// Why.
    pub(super) errno: Errno,
    /// What was to be written; `None` when it is lost, because a helper has died over it.
    pub(super) data: Option<Vec<u8>>,
}

impl Unwritten {
    /// What to answer to a request whose body there is no place for.
    pub(super) fn status(&self) -> u16 {
        match self.errno {
            Errno::NOSPC | Errno::DQUOT | Errno::FBIG => 507,
            _ => 500,
        }
    }
}

/// A file that grows at its end, and is read from anywhere.
///
/// Invariant: the first `length` bytes are written; one write at most is on its way, of the `coming`
/// bytes behind them. `length + coming <= size_max`.
pub(super) struct SpillFile {
    core: Core,
    directory: PathBuf,
    size_max: u64,
    total_max: u64,
    taken: Taken,
    /// Made with the first write.
    file: Option<Open>,
    length: u64,
    coming: u64,
    writing: Option<Once>,
}

/// The file, for helpers and for this core.
struct Open {
    shared: Arc<OwnedFd>,
    here: Fd,
}

/// What a helper says of a write.
struct Written {
    file: Option<Arc<OwnedFd>>,
    data: Vec<u8>,
    result: Result<(), Errno>,
}

impl SpillFile {
    /// A file that is made when something is written to it.
    pub(super) fn new(core: &Core, spill: &Spill) -> Self {
        Self::of(core, spill, &ACCOUNT)
    }

    /// As [`Self::new`], on this account.
    fn of(core: &Core, spill: &Spill, account: &'static Account) -> Self {
        Self {
            core: core.clone(),
            directory: spill.directory.clone(),
            size_max: spill.size_max,
            total_max: spill.total_max,
            taken: Taken::none(account),
            file: None,
            length: 0,
            coming: 0,
            writing: None,
        }
    }

    /// Bytes that are written.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// Bytes that may be added: none while all files together take what they may.
    pub(super) fn room(&self) -> u64 {
        let own = self.size_max - self.length - self.coming;
        match own > 0 && self.taken.account().has_room(self.total_max) {
            true => own,
            false => 0,
        }
    }

    /// As [`Self::room`], of a file that is still to be made.
    pub(super) fn room_for(spill: &Spill) -> u64 {
        match ACCOUNT.has_room(spill.total_max) {
            true => spill.size_max,
            false => 0,
        }
    }

    /// Whether a write is on its way.
    pub(super) fn is_writing(&self) -> bool {
        self.writing.is_some()
    }

    /// Begins to add these bytes, for which there was room when it was asked. Not while a write is on its way.
    pub(super) fn begin_write(&mut self, data: Vec<u8>) {
        assert!(!self.is_writing(), "one write at a time keeps the order");
        self.coming = data.len() as u64;
        assert!(
            self.length + self.coming <= self.size_max,
            "the bound is the caller's"
        );
        self.taken.add(self.coming);
        let opened = self.file.as_ref().map(|open| Arc::clone(&open.shared));
        let job = write_job(opened, self.directory.clone(), data, self.length);
        self.writing = Some(self.core.once(Op::Offload(job)));
    }

    /// Ready when no write is on its way, with the emptied buffer of the last one.
    ///
    /// # Errors
    /// See [`Unwritten`].
    pub(super) fn poll_write(&mut self) -> Poll<Result<Vec<u8>, Unwritten>> {
        let Some(writing) = &mut self.writing else {
            return Poll::Ready(Ok(Vec::new()));
        };
        let mut context = Context::from_waker(Waker::noop());
        let done = ready!(Pin::new(writing).poll(&mut context));
        self.writing = None;
        let coming = std::mem::take(&mut self.coming);
        let answer = match done.output {
            Output::Answer(answer) => answer.downcast::<Written>().ok(),
            _ => None,
        };
        let Some(written) = answer else {
            self.taken.give_back(coming);
            let errno = done.result.err().unwrap_or(Errno::IO);
            return Poll::Ready(Err(Unwritten { errno, data: None }));
        };
        let Written { file, data, result } = *written;
        if let (None, Some(shared)) = (&self.file, file) {
            let here = self.core.share(Arc::clone(&shared));
            self.file = Some(Open { shared, here });
        }
        Poll::Ready(match result {
            Ok(()) => {
                self.length += coming;
                let mut emptied = data;
                emptied.clear();
                Ok(emptied)
            }
            Err(errno) => {
                self.taken.give_back(coming);
                Err(Unwritten {
                    errno,
                    data: Some(data),
                })
            }
        })
    }

    /// Adds these bytes, as [`Self::begin_write`]; gives the emptied buffer.
    ///
    /// # Errors
    /// See [`Unwritten`].
    pub(super) async fn write(&mut self, data: Vec<u8>) -> Result<Vec<u8>, Unwritten> {
        self.begin_write(data);
        poll_fn(|_| self.poll_write()).await
    }

    /// What is written from `from` on, `None` where that is nothing. It stays as it is, also when more
    /// is written behind it, and when this is dropped while the kernel still sends it.
    pub(super) fn part(&self, from: u64) -> Option<FilePart> {
        let open = self.file.as_ref()?;
        (from < self.length).then(|| FilePart {
            file: open.here.clone(),
            offset: from,
            length: self.length - from,
            // It was written just now.
            direct: DirectMode::Off,
            warmth: Warmth::default(),
        })
    }
}

impl Drop for SpillFile {
    /// Gives the disk back by a helper: the kernel takes its time to free a large file.
    fn drop(&mut self) {
        let Some(open) = self.file.take().filter(|_| self.length > 0) else {
            return;
        };
        let core = self.core.clone();
        let taken = std::mem::replace(&mut self.taken, Taken::none(&ACCOUNT));
        self.core.spawn(async move {
            let free = move || -> Box<dyn Any + Send> {
                // What fails here is done by the close, which follows in any case.
                let _ = ftruncate(&*open.shared, 0);
                drop(taken);
                Box::new(())
            };
            core.once(Op::Offload(Box::new(free))).await;
        });
    }
}

/// The job that writes `data` at `offset`, into a new file where there is none yet.
fn write_job(opened: Option<Arc<OwnedFd>>, directory: PathBuf, data: Vec<u8>, offset: u64) -> Job {
    Box::new(move || {
        let file = match opened {
            Some(file) => Ok(file),
            None => unnamed_file(&directory).map(Arc::new),
        };
        Box::new(match file {
            Ok(file) => Written {
                result: write_all(&file, &data, offset),
                file: Some(file),
                data,
            },
            Err(errno) => Written {
                file: None,
                data,
                result: Err(errno),
            },
        })
    })
}

fn write_all(file: &OwnedFd, data: &[u8], offset: u64) -> Result<(), Errno> {
    let mut written = 0;
    while written < data.len() {
        match pwrite(file, &data[written..], offset + written as u64) {
            Ok(0) => return Err(Errno::NOSPC),
            Ok(bytes) => written += bytes,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod testing {
    use std::time::Duration;

    use super::*;
    use crate::runtime;
    use crate::runtime::offload::Helpers;

    /// Runs a task on a core of each engine, which has helpers, and checks that nothing is left of it.
    pub(in crate::handlers::proxy) fn on_each_engine<F: Future<Output = ()> + 'static>(
        task: impl Fn(Core) -> F,
    ) {
        let helpers = Helpers::start(2, 16).unwrap();
        runtime::on_each_engine(Some(&helpers), Duration::from_secs(20), |core| {
            core.spawn(task(core.clone()));
        });
    }

    /// Reads a part of a file.
    pub(in crate::handlers::proxy) async fn read(core: &Core, part: &FilePart) -> Vec<u8> {
        let read = core.once(Op::Read {
            file: part.file.clone(),
            data: Vec::new(),
            len: part.length as usize,
            offset: part.offset,
        });
        match read.await.output {
            Output::Data(data) => data,
            _ => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{on_each_engine, read};
    use super::*;

    fn spill(directory: &std::path::Path, size_max: u64) -> Spill {
        Spill {
            directory: directory.to_owned(),
            size_max,
            total_max: u64::MAX,
        }
    }

    /// The descriptors of this process that lead to files in this directory.
    fn open_in(directory: &std::path::Path) -> usize {
        let numbers = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
        let links = numbers.filter_map(|number| std::fs::read_link(number.path()).ok());
        links.filter(|path| path.starts_with(directory)).count()
    }

    #[test]
    fn what_is_written_is_there_and_goes_with_its_holder() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().to_owned();
        on_each_engine(|core| {
            let spill = spill(&path, 100);
            let path = path.clone();
            async move {
                let mut file = SpillFile::new(&core, &spill);
                assert!(file.part(0).is_none(), "nothing is written yet");
                assert_eq!(open_in(&path), 0, "nor made");
                let emptied = file.write(b"hello ".to_vec()).await.unwrap();
                assert!(emptied.is_empty() && emptied.capacity() >= 6);
                file.begin_write(b"world".to_vec());
                assert_eq!((file.length(), file.room()), (6, 89));
                let before = file.part(0).unwrap();
                poll_fn(|_| file.poll_write()).await.unwrap();
                assert_eq!((file.length(), file.room()), (11, 89));
                assert_eq!(read(&core, &before).await, b"hello ");
                assert_eq!(read(&core, &file.part(3).unwrap()).await, b"lo world");
                assert!(file.part(11).is_none());
                assert_eq!(open_in(&path), 1);
                // In the middle of a write, too.
                file.begin_write(b"!".to_vec());
            }
        });
        assert_eq!(open_in(directory.path()), 0);
    }

    #[test]
    fn what_can_not_be_written_comes_back() {
        let directory = tempfile::tempdir().unwrap();
        let gone = directory.path().join("gone");
        on_each_engine(|core| {
            let spill = spill(&gone, 100);
            async move {
                let mut file = SpillFile::new(&core, &spill);
                let error = file.write(b"hello".to_vec()).await.unwrap_err();
                assert_eq!(error.errno, Errno::NOENT);
                assert_eq!(error.data.as_deref(), Some(&b"hello"[..]));
                assert_eq!(error.status(), 500);
                assert_eq!((file.length(), file.room()), (0, 100));
                assert!(file.part(0).is_none());
            }
        });
    }

    #[test]
    fn a_full_disk_is_told_from_a_broken_one() {
        let status = |errno| Unwritten { errno, data: None }.status();
        assert_eq!(
            [Errno::NOSPC, Errno::DQUOT, Errno::FBIG].map(status),
            [507; 3]
        );
        assert_eq!([Errno::IO, Errno::ACCESS].map(status), [500; 2]);
    }
}
