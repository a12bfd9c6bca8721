//! Where batches of the access log go: one writer thread per target, shared by all cores.
//!
//! Only the writer thread ever waits for the target. A core hands a batch over if the queue has
//! room and nobody else is at it this very moment, and keeps the batch otherwise: see
//! [`LogBuffer::give_back`](super::access_log::LogBuffer::give_back). A target that takes nothing
//! (a full disk, a pipe whose reader is gone) costs lines, which are counted and reported to the
//! control log once a minute at most; the server goes on.

use std::fmt;
use std::io;
use std::mem;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// Most bytes that wait in the queue of a sink. A batch is refused beyond it.
pub const QUEUE_MAX: usize = 1024 * 1024;
/// Shortest time between two reports of lines that were lost.
const REPORT_INTERVAL: Duration = Duration::from_secs(60);
/// How long dropping the sink waits for what is queued.
const CLOSE_MAX: Duration = Duration::from_secs(2);

/// What a sink writes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Standard output.
    Stdout,
    /// Appended to this file, which is made with mode 0640 (less the umask) if it is missing.
    File(PathBuf),
}

impl Target {
    /// Opens it, for a sink here or in a process that may not open it itself.
    ///
    /// # Errors
    /// From open(2), among them ENXIO for a FIFO that nobody reads.
    pub fn open(&self) -> io::Result<OwnedFd> {
        // Non-blocking matters for a FIFO alone, which would wait here for a reader.
        let flags = OFlags::WRONLY
            | OFlags::APPEND
            | OFlags::CREATE
            | OFlags::CLOEXEC
            | OFlags::NOCTTY
            | OFlags::NONBLOCK;
        let mode = Mode::RUSR | Mode::WUSR | Mode::RGRP;
        match self {
            Self::Stdout => io::stdout().as_fd().try_clone_to_owned(),
            Self::File(path) => Ok(rustix::fs::open(path, flags, mode)?),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdout => f.write_str("standard output"),
            Self::File(path) => path.display().fmt(f),
        }
    }
}

/// Owns the writer thread. Dropping it closes it, and waits two seconds at most.
#[derive(Debug)]
pub struct Sink {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    /// Says nothing, and is disconnected when the writer has ended.
    ended: mpsc::Receiver<()>,
}

/// What a core submits through.
#[derive(Clone, Debug)]
pub struct SinkHandle {
    shared: Arc<Shared>,
}

impl Sink {
    /// Opens the target and starts its writer thread, `beltway-log`.
    ///
    /// # Errors
    /// From open(2), among them ENXIO for a FIFO that nobody reads; EAGAIN when the system refuses
    /// another thread.
    pub fn start(target: &Target) -> io::Result<Self> {
        Self::start_on(target.open()?, target.to_string())
    }

    /// Starts a writer thread on an open descriptor, blocking or not; `name` is for reports.
    ///
    /// # Errors
    /// EAGAIN when the system refuses another thread.
    pub fn start_on(fd: OwnedFd, name: String) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let (alive, ended) = mpsc::channel::<()>();
        let mut writer = Writer {
            fd,
            name,
            shared: shared.clone(),
            is_torn: false,
            losses: Losses::default(),
        };
        let thread = thread::Builder::new()
            .name("beltway-log".to_owned())
            .spawn(move || {
                writer.run();
                drop(alive);
            })?;
        Ok(Self {
            shared,
            thread: Some(thread),
            ended,
        })
    }

    /// A handle for a core.
    pub fn handle(&self) -> SinkHandle {
        SinkHandle {
            shared: self.shared.clone(),
        }
    }

    /// Lines that the target didn't take, since the start.
    pub fn lines_lost(&self) -> u64 {
        self.shared.lines_lost.load(Ordering::Relaxed)
    }

    /// Writes to this descriptor from the next batch on: a rotated file is left to whoever renamed it,
    /// with every line that was written before, and no line is lost between the two.
    pub fn reopen(&self, fd: OwnedFd) {
        self.shared.lock().next = Some(fd);
        // The old file is let go of at once, not with the next line.
        self.shared.changed.notify_all();
    }

    /// Waits up to `timeout` until everything that was submitted before is written, or lost and
    /// reported. Says whether it is.
    pub fn flush(&self, timeout: Duration) -> bool {
        let busy = |queue: &mut Queue| queue.is_writing || !queue.batches.is_empty();
        let waited = self
            .shared
            .idle
            .wait_timeout_while(self.shared.lock(), timeout, busy);
        let waited = waited.unwrap_or_else(PoisonError::into_inner);
        !waited.1.timed_out()
    }

    /// Takes no more batches, and waits up to `timeout` until those in the queue are written. True
    /// when they are (or were lost, and reported); a writer that waits for its target longer is
    /// left behind.
    pub fn close(&mut self, timeout: Duration) -> bool {
        self.shared.lock().is_closing = true;
        self.shared.changed.notify_one();
        if self.ended.recv_timeout(timeout) == Err(RecvTimeoutError::Timeout) {
            return false;
        }
        if let Some(thread) = self.thread.take() {
            // The writer has ended, and a panic of its own has been reported by the panic hook.
            let _ = thread.join();
        }
        true
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.close(CLOSE_MAX);
    }
}

impl SinkHandle {
    /// Queues a batch of whole lines. Never waits.
    ///
    /// # Errors
    /// The batch, when the queue is full, another thread is at the queue, or the sink is closing.
    pub fn try_submit(&self, batch: Vec<u8>) -> Result<(), Vec<u8>> {
        if batch.is_empty() {
            return Ok(());
        }
        let queue = match self.shared.queue.try_lock() {
            Ok(queue) => queue,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return Err(batch),
        };
        self.put(queue, batch)
    }

    /// As [`Self::try_submit`], but waits its turn at the queue, where pointers are moved and nothing
    /// else: for what is rare. It never waits for the target.
    ///
    /// # Errors
    /// The batch, when the queue is full or the sink is closing.
    pub fn submit(&self, batch: Vec<u8>) -> Result<(), Vec<u8>> {
        self.put(self.shared.lock(), batch)
    }

    fn put(&self, mut queue: MutexGuard<'_, Queue>, batch: Vec<u8>) -> Result<(), Vec<u8>> {
        if queue.is_closing || queue.bytes + batch.len() > QUEUE_MAX {
            return Err(batch);
        }
        queue.bytes += batch.len();
        queue.batches.push(batch);
        drop(queue);
        self.shared.changed.notify_one();
        Ok(())
    }
}

/// What the cores and the writer share. The lock is held to move pointers only.
#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
    /// The writer has nothing to write.
    idle: Condvar,
    lines_lost: AtomicU64,
}

/// Batches that wait. Invariant: `bytes` is their length together, at most [`QUEUE_MAX`].
#[derive(Debug, Default)]
struct Queue {
    batches: Vec<Vec<u8>>,
    bytes: usize,
    is_closing: bool,
    /// The writer is at batches that it has taken.
    is_writing: bool,
    /// What the writer is to write to from now on.
    next: Option<OwnedFd>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The writer thread.
struct Writer {
    fd: OwnedFd,
    name: String,
    shared: Arc<Shared>,
    /// The last write ended inside a line.
    is_torn: bool,
    losses: Losses,
}

impl Writer {
    fn run(&mut self) {
        while let Some(batches) = self.next() {
            for batch in batches {
                self.write_batch(&batch);
            }
        }
        if let Some((lines, error)) = self.losses.rest() {
            self.report(lines, error);
        }
    }

    /// Waits for batches; none when the sink closes and the queue is empty.
    fn next(&mut self) -> Option<Vec<Vec<u8>>> {
        let shared = Arc::clone(&self.shared);
        let mut queue = shared.lock();
        queue.is_writing = false;
        shared.idle.notify_all();
        loop {
            if let Some(fd) = queue.next.take() {
                // A line that was torn in the old file is whole there or not at all.
                (self.fd, self.is_torn) = (fd, false);
            }
            if !queue.batches.is_empty() {
                break;
            }
            if queue.is_closing {
                return None;
            }
            queue = shared
                .changed
                .wait(queue)
                .unwrap_or_else(PoisonError::into_inner);
        }
        queue.bytes = 0;
        queue.is_writing = true;
        Some(mem::take(&mut queue.batches))
    }

    fn write_batch(&mut self, batch: &[u8]) {
        let Err((written, errno)) = self.try_write_batch(batch) else {
            return;
        };
        let lines = memchr::memchr_iter(b'\n', &batch[written..]).count() as u64;
        self.shared.lines_lost.fetch_add(lines, Ordering::Relaxed);
        if let Some(lines) = self.losses.add(lines, errno, Instant::now()) {
            self.report(lines, errno);
        }
    }

    /// Writes a batch, after the end of a line that an earlier failure tore.
    ///
    /// # Errors
    /// How many bytes of the batch were written, and why not the others.
    fn try_write_batch(&mut self, batch: &[u8]) -> Result<(), (usize, Errno)> {
        if self.is_torn {
            self.write_all(b"\n").map_err(|(_, errno)| (0, errno))?;
            self.is_torn = false;
        }
        self.write_all(batch).inspect_err(|(written, _)| {
            self.is_torn = *written > 0 && batch[written - 1] != b'\n';
        })
    }

    /// Writes everything, waiting as long as the target makes it wait.
    ///
    /// # Errors
    /// How many bytes were written before the target refused, and why.
    fn write_all(&self, bytes: &[u8]) -> Result<(), (usize, Errno)> {
        let mut written = 0;
        while written < bytes.len() {
            match rustix::io::write(&self.fd, &bytes[written..]) {
                Ok(count) => written += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    // An error here (or POLLERR) makes the next write tell what is wrong.
                    let _ = poll(&mut [PollFd::new(&self.fd, PollFlags::OUT)], None);
                }
                Err(errno) => return Err((written, errno)),
            }
        }
        Ok(())
    }

    fn report(&self, lines: u64, error: Errno) {
        tracing::warn!(target = %self.name, lines, error = %io::Error::from(error), "access log lines lost");
    }
}

/// Decides when lost lines are reported: at once, and then once a minute at most, all together.
#[derive(Debug, Default)]
struct Losses {
    lines: u64,
    error: Option<Errno>,
    reported: Option<Instant>,
}

impl Losses {
    /// Counts lost lines; says how many are to be reported now.
    fn add(&mut self, lines: u64, error: Errno, now: Instant) -> Option<u64> {
        self.lines += lines;
        self.error = Some(error);
        let is_due = self
            .reported
            .is_none_or(|last| now >= last + REPORT_INTERVAL);
        if !is_due || self.lines == 0 {
            return None;
        }
        self.reported = Some(now);
        Some(mem::take(&mut self.lines))
    }

    /// What is left to report at the end.
    fn rest(&mut self) -> Option<(u64, Errno)> {
        let lines = mem::take(&mut self.lines);
        self.error.filter(|_| lines > 0).map(|error| (lines, error))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Read as _;
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::Path;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    /// Submits as a core does that has nothing else to do.
    fn submit(handle: &SinkHandle, batch: &[u8]) {
        let deadline = Instant::now() + PATIENCE;
        let mut batch = batch.to_vec();
        while let Err(refused) = handle.try_submit(batch) {
            assert!(Instant::now() < deadline, "the queue stays full");
            batch = refused;
            thread::yield_now();
        }
    }

    #[test]
    fn batches_of_all_cores_are_appended_whole_to_a_file_that_others_cannot_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("access.log");
        for _ in 0..2 {
            let mut sink = Sink::start(&Target::File(path.clone())).unwrap();
            thread::scope(|scope| {
                for core in 0..3 {
                    let handle = sink.handle();
                    scope.spawn(move || {
                        for batch in 0..50 {
                            let line = format!("core {core} batch {batch}\n");
                            submit(&handle, line.repeat(20).as_bytes());
                        }
                    });
                }
            });
            assert!(sink.close(PATIENCE));
            assert_eq!(sink.lines_lost(), 0);
        }
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o137, 0, "{mode:o}");
        let log = fs::read_to_string(&path).unwrap();
        let lines: Vec<_> = log.lines().collect();
        assert_eq!(lines.len(), 2 * 3 * 50 * 20, "the second start appends");
        assert!(
            lines
                .chunks(20)
                .all(|batch| batch.iter().all(|line| *line == batch[0]))
        );
    }

    #[test]
    fn a_rotated_file_keeps_its_lines_and_the_new_one_gets_all_others() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("access.log");
        let target = Target::File(path.clone());
        let mut sink = Sink::start(&target).unwrap();
        let lines_of = |path: &Path| fs::read_to_string(path).unwrap().lines().count();
        let mut kept = 0;
        for turn in 0..20 {
            for line in 0..50 {
                submit(&sink.handle(), format!("{turn} {line}\n").as_bytes());
            }
            let rotated = directory.path().join("access.log.1");
            fs::rename(&path, &rotated).unwrap();
            sink.reopen(target.open().unwrap());
            submit(&sink.handle(), b"after\n");
            assert!(sink.flush(PATIENCE));
            assert!(lines_of(&path) >= 1, "the new file is written to");
            kept += lines_of(&rotated);
        }
        assert!(sink.close(PATIENCE));
        assert_eq!(kept + lines_of(&path), 20 * 51);
    }

    #[test]
    fn a_flush_waits_for_the_target_and_no_longer_than_it_may() {
        let (read, write) = rustix::pipe::pipe().unwrap();
        let mut sink = Sink::start_on(write, "a pipe".to_owned()).unwrap();
        assert!(sink.flush(PATIENCE), "nothing waits");
        submit(&sink.handle(), &vec![b'x'; QUEUE_MAX / 2]);
        assert!(!sink.flush(Duration::from_millis(1)), "nobody reads");
        let reader = thread::spawn(move || {
            let mut all = Vec::new();
            fs::File::from(read).read_to_end(&mut all).unwrap();
            all.len()
        });
        assert!(sink.flush(PATIENCE));
        assert!(sink.close(PATIENCE));
        drop(sink);
        assert_eq!(reader.join().unwrap(), QUEUE_MAX / 2);
    }

    #[test]
    fn a_slow_pipe_holds_up_the_writer_and_no_core() {
        for flags in [
            rustix::pipe::PipeFlags::empty(),
            rustix::pipe::PipeFlags::NONBLOCK,
        ] {
            let (read, write) = rustix::pipe::pipe_with(flags).unwrap();
            let mut sink = Sink::start_on(write, "a pipe".to_owned()).unwrap();
            let handle = sink.handle();
            let batch = "x".repeat(32 * 1024 - 1) + "\n";
            // Nobody reads. The pipe takes 64 KiB, the writer has taken one queue at most beyond
            // that and waits with it, and the next queue fills.
            let (mut submitted, mut refused) = (0, 0);
            let deadline = Instant::now() + PATIENCE;
            while submitted * batch.len() <= QUEUE_MAX || refused == 0 {
                assert!(
                    Instant::now() < deadline,
                    "{submitted} taken, {refused} refused"
                );
                match handle.try_submit(batch.clone().into_bytes()) {
                    Ok(()) => submitted += 1,
                    Err(back) => {
                        assert_eq!(back, batch.as_bytes());
                        refused += 1;
                    }
                }
            }
            assert!(
                submitted * batch.len() <= 2 * QUEUE_MAX + 64 * 1024,
                "{submitted}"
            );
            assert!(
                !sink.close(Duration::from_millis(1)),
                "the writer waits for the reader"
            );
            assert!(handle.try_submit(b"late\n".to_vec()).is_err(), "closing");

            rustix::io::ioctl_fionbio(&read, false).unwrap();
            let reader = thread::spawn(move || {
                let mut all = Vec::new();
                fs::File::from(read).read_to_end(&mut all).unwrap();
                all
            });
            assert!(sink.close(PATIENCE), "what is queued is written at the end");
            let all = reader.join().unwrap();
            assert_eq!(all.len(), submitted * batch.len());
        }
    }

    #[test]
    fn a_full_disk_costs_lines_and_nothing_else() {
        let mut sink = Sink::start(&Target::File("/dev/full".into())).unwrap();
        let handle = sink.handle();
        submit(&handle, b"one\ntwo\n");
        submit(&handle, b"three\n");
        assert!(sink.close(PATIENCE));
        assert_eq!(sink.lines_lost(), 3);
    }

    #[test]
    fn a_pipe_without_a_reader_costs_lines_and_nothing_else() {
        let (read, write) = rustix::pipe::pipe().unwrap();
        drop(read);
        let mut sink = Sink::start_on(write, "a pipe".to_owned()).unwrap();
        submit(&sink.handle(), b"one\n");
        assert!(sink.close(PATIENCE));
        assert_eq!(sink.lines_lost(), 1);
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_an_error_at_the_start() {
        let directory = tempfile::tempdir().unwrap();
        let missing = directory.path().join("no/such/directory/log");
        let error = Sink::start(&Target::File(missing)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn losses_are_reported_at_once_then_once_a_minute() {
        let (mut losses, now) = (Losses::default(), Instant::now());
        let second = Duration::from_secs(1);
        assert_eq!(losses.add(3, Errno::NOSPC, now), Some(3));
        assert_eq!(losses.add(4, Errno::NOSPC, now + second), None);
        assert_eq!(losses.add(5, Errno::NOSPC, now + 59 * second), None);
        assert_eq!(losses.add(1, Errno::NOSPC, now + 60 * second), Some(10));
        assert_eq!(losses.rest(), None);
        assert_eq!(losses.add(2, Errno::PIPE, now + 61 * second), None);
        assert_eq!(losses.rest(), Some((2, Errno::PIPE)));
    }
}
