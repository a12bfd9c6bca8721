//! Helper threads for what has no asynchronous form: `getaddrinfo`, and opening and reading files
//! that aren't in memory when the engine can't do it.
//!
//! The pool is small, bounded and shared by all cores. It is started on the main thread before the
//! cores are pinned, so that helpers inherit the full set of CPUs. A core submits through its own
//! [`HelperPort`] and never waits: when the port or the queue is full it gets the job back, keeps
//! it, and tries again at its next turn. The result comes back to the same core, which is woken.
//!
//! A helper never waits for a core either. A port allows as many jobs as one of its reply rings
//! holds, so there is always room for the reply.

use std::any::Any;
use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, SyncSender, TrySendError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::mailbox::{self, Wake};
use super::sys::heap;

/// How long dropping the pool waits for jobs that are running.
const JOIN_MAX: Duration = Duration::from_secs(2);

/// What a job gives back; the core that submitted it knows the type behind it.
pub type Output = Box<dyn Any + Send>;

/// Work that may block.
pub type Job = Box<dyn FnOnce() -> Output + Send>;

/// A job panicked: our fault, and only this job is lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobPanicked {
    /// What the panic said.
    pub message: String,
}

impl fmt::Display for JobPanicked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a helper's job panicked: {}", self.message)
    }
}

impl std::error::Error for JobPanicked {}

/// The pool. Dropping it abandons the jobs that wait, and waits at most two seconds for those that
/// run; so it is dropped after the cores have ended.
#[derive(Debug)]
pub struct Helpers {
    queue: SyncSender<Message>,
    queue_capacity: usize,
    stopping: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    /// Says nothing, and is disconnected when the last helper has ended.
    ended: mpsc::Receiver<()>,
}

impl Helpers {
    /// How many helpers suit a machine with so many CPUs: two to four. One alone would make every
    /// file wait behind one slow name server.
    pub fn threads_default(cpus: usize) -> usize {
        cpus.clamp(2, 4)
    }

    /// Starts `threads` helpers, named `beltway-help-N`, which share a queue of `queue_capacity`
    /// jobs. Both are at least 1.
    ///
    /// # Errors
    /// EAGAIN when the system refuses another thread; those that were started end again.
    pub fn start(threads: usize, queue_capacity: usize) -> io::Result<Self> {
        let queue_capacity = queue_capacity.max(1);
        let (queue, jobs) = mpsc::sync_channel(queue_capacity);
        let (alive, ended) = mpsc::channel();
        let jobs = Arc::new(Mutex::new(jobs));
        let mut helpers = Self {
            queue,
            queue_capacity,
            stopping: Arc::default(),
            threads: Vec::new(),
            ended,
        };
        for lane in 0..threads.max(1) {
            let helper = Helper {
                lane,
                jobs: jobs.clone(),
                stopping: helpers.stopping.clone(),
                _alive: alive.clone(),
            };
            let thread = thread::Builder::new()
                .name(format!("beltway-help-{lane}"))
                .spawn(move || helper.run())?;
            helpers.threads.push(thread);
        }
        Ok(helpers)
    }

    /// A port for the core that owns `wake`. It allows as many jobs at once as the queue holds.
    pub fn port(&self, wake: Arc<Wake>) -> HelperPort {
        let (senders, receivers) = self
            .threads
            .iter()
            .map(|_| mailbox::channel(self.queue_capacity, wake.clone()))
            .map(|(sender, receiver)| (Mutex::new(sender), receiver))
            .unzip();
        HelperPort {
            queue: self.queue.clone(),
            replies: Arc::new(ReplyLanes { lanes: senders }),
            lanes: receivers,
            lane_next: 0,
            outstanding: 0,
            capacity: self.queue_capacity,
        }
    }

    /// Abandons the jobs that wait, and waits up to `timeout` for those that run. True when every
    /// helper has ended; a helper whose job hangs is left behind.
    pub fn stop(&mut self, timeout: Duration) -> bool {
        self.stopping.store(true, Ordering::Release);
        // One helper waits for the queue and the others for their turn at it. A message gets the
        // first going, and each lets the next one in as it ends. A full queue has messages enough.
        let _ = self.queue.try_send(Message::Stop);
        if self.ended.recv_timeout(timeout) == Err(RecvTimeoutError::Timeout) {
            return false;
        }
        for thread in self.threads.drain(..) {
            // A helper catches the panics of its jobs and has none of its own to report.
            let _ = thread.join();
        }
        true
    }
}

impl Drop for Helpers {
    fn drop(&mut self) {
        self.stop(JOIN_MAX);
    }
}

/// What a core submits through and gets its results from. Dropping it drops the results of what is
/// still running, and with them what they own.
///
/// Invariant: `outstanding <= capacity`, and it counts the jobs submitted whose result wasn't
/// taken. All of their results fit into any one lane.
#[derive(Debug)]
pub struct HelperPort {
    queue: SyncSender<Message>,
    replies: Arc<ReplyLanes>,
    /// One ring for each helper, so that no two threads write to the same.
    lanes: Vec<mailbox::Receiver<Reply>>,
    lane_next: usize,
    outstanding: usize,
    capacity: usize,
}

impl HelperPort {
    /// Queues a job, whose result will come back with `token`. Never waits: the queue's own lock
    /// is held for an instant at most, never while a job runs.
    ///
    /// # Errors
    /// The job, when this port has as many jobs outstanding as it may, or the queue is full, or
    /// the helpers have ended. To be tried again after [`poll`](Self::poll) or at the next turn.
    pub fn submit(&mut self, token: u64, job: Job) -> Result<(), Job> {
        if self.outstanding == self.capacity {
            return Err(job);
        }
        let task = Task {
            token,
            job,
            replies: self.replies.clone(),
        };
        match self.queue.try_send(Message::Run(task)) {
            Ok(()) => {
                self.outstanding += 1;
                Ok(())
            }
            Err(TrySendError::Full(message) | TrySendError::Disconnected(message)) => match message
            {
                Message::Run(task) => Err(task.job),
                Message::Stop => unreachable!("the message refused is the one that was sent"),
            },
        }
    }

    /// The result of a job that has ended, with its token; in no particular order. The owner calls
    /// it after draining its wake, until it gives `None`.
    pub fn poll(&mut self) -> Option<(u64, Result<Output, JobPanicked>)> {
        for _ in 0..self.lanes.len() {
            let lane = self.lane_next;
            self.lane_next = (lane + 1) % self.lanes.len();
            if let Some(reply) = self.lanes[lane].pop() {
                assert!(self.outstanding > 0, "every reply answers a job");
                self.outstanding -= 1;
                // It is freed here, so it counts here.
                heap::adopt(reply.grown);
                return Some((reply.token, reply.result));
            }
        }
        None
    }

    /// How many jobs were submitted and not yet given back by [`poll`](Self::poll).
    pub fn outstanding(&self) -> usize {
        self.outstanding
    }

    /// How many jobs may be outstanding.
    pub fn capacity(&self) -> usize {
        self.capacity
    }
}

/// What waits in the queue.
enum Message {
    Run(Task),
    /// The pool ends; it only wakes a helper that waits.
    Stop,
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Run(task) => write!(f, "Run({})", task.token),
            Self::Stop => f.write_str("Stop"),
        }
    }
}

/// A job and where its result goes.
struct Task {
    token: u64,
    job: Job,
    replies: Arc<ReplyLanes>,
}

/// The writing ends of a port's rings. Lane `n` is used by helper `n` alone, so its lock is never
/// contended: it is there because the port is shared, and costs one atomic operation a job.
#[derive(Debug)]
struct ReplyLanes {
    lanes: Vec<Mutex<mailbox::Sender<Reply>>>,
}

/// A result on its way to the core.
#[derive(Debug)]
struct Reply {
    token: u64,
    result: Result<Output, JobPanicked>,
    /// Bytes of the heap that the job has allocated, less those that it freed.
    grown: i64,
}

/// One helper thread.
struct Helper {
    lane: usize,
    jobs: Arc<Mutex<mpsc::Receiver<Message>>>,
    stopping: Arc<AtomicBool>,
    _alive: mpsc::Sender<()>,
}

impl Helper {
    fn run(self) {
        while let Some(task) = self.next() {
            let before = heap::own();
            let result = catch_unwind(AssertUnwindSafe(task.job)).map_err(|payload| JobPanicked {
                message: panic_message(&*payload),
            });
            let grown = heap::own() - before;
            let mut sender = self.lane_of(&task.replies);
            let sent = sender.try_send(Reply {
                token: task.token,
                result,
                grown,
            });
            assert!(
                sent.is_ok(),
                "a port has no more jobs outstanding than a lane holds"
            );
        }
    }

    /// Waits for a job; none when the pool ends. Nothing that can panic runs under the lock.
    fn next(&self) -> Option<Task> {
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if self.stopping.load(Ordering::Acquire) {
                return None;
            }
            match jobs.recv() {
                Ok(Message::Run(task)) if !self.stopping.load(Ordering::Acquire) => {
                    return Some(task);
                }
                Ok(_) => {}
                Err(mpsc::RecvError) => return None,
            }
        }
    }

    fn lane_of<'r>(
        &self,
        replies: &'r ReplyLanes,
    ) -> std::sync::MutexGuard<'r, mailbox::Sender<Reply>> {
        replies.lanes[self.lane]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// The text that `panic!` was given.
fn panic_message(payload: &(dyn Any + Send)) -> String {
    if let Some(text) = payload.downcast_ref::<&str>() {
        (*text).to_owned()
    } else if let Some(text) = payload.downcast_ref::<String>() {
        text.clone()
    } else {
        "no message".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::time::Instant;

    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;

    fn job<T: Any + Send>(work: impl FnOnce() -> T + Send + 'static) -> Job {
        Box::new(move || Box::new(work()))
    }

    /// Sleeps as a core does until its wake says that something came.
    fn wait(wake: &Wake) {
        let timeout = Timespec::try_from(Duration::from_secs(20)).unwrap();
        let mut fds = [PollFd::new(wake, PollFlags::IN)];
        assert_eq!(poll(&mut fds, Some(&timeout)).unwrap(), 1, "no reply came");
        wake.drain();
    }

    fn next(port: &mut HelperPort, wake: &Wake) -> (u64, Result<Output, JobPanicked>) {
        loop {
            if let Some(reply) = port.poll() {
                return reply;
            }
            wait(wake);
        }
    }

    #[test]
    fn the_result_comes_back_to_the_core_that_asked_with_its_token() {
        let helpers = Helpers::start(2, 8).unwrap();
        let wakes = [Wake::new().unwrap(), Wake::new().unwrap()];
        let mut ports = wakes.clone().map(|wake| helpers.port(wake));
        for (core, port) in ports.iter_mut().enumerate() {
            let work = job(move || {
                let name = thread::current().name().unwrap().to_owned();
                (core, name)
            });
            assert!(port.submit(40 + core as u64, work).is_ok());
        }
        for (core, (port, wake)) in ports.iter_mut().zip(&wakes).enumerate() {
            let (token, result) = next(port, wake);
            let (from, name) = *result.unwrap().downcast::<(usize, String)>().unwrap();
            assert_eq!((token, from), (40 + core as u64, core));
            assert!(name.starts_with("beltway-help-"), "{name}");
            assert_eq!(port.outstanding(), 0);
        }
    }

    #[test]
    fn a_job_that_panics_is_reported_and_the_helper_goes_on() {
        let helpers = Helpers::start(1, 4).unwrap();
        let wake = Wake::new().unwrap();
        let mut port = helpers.port(wake.clone());
        assert!(
            port.submit(1, Box::new(|| panic!("no such {}", "thing")))
                .is_ok()
        );
        assert!(port.submit(2, job(|| 7u8)).is_ok());
        let (token, result) = next(&mut port, &wake);
        assert_eq!(
            (token, result.unwrap_err().message.as_str()),
            (1, "no such thing")
        );
        let (token, result) = next(&mut port, &wake);
        assert_eq!((token, *result.unwrap().downcast::<u8>().unwrap()), (2, 7));
    }

    #[test]
    fn a_port_refuses_beyond_its_capacity_until_a_result_was_taken() {
        let helpers = Helpers::start(2, 2).unwrap();
        let wake = Wake::new().unwrap();
        let mut port = helpers.port(wake.clone());
        // Give the queue time to empty: only the port's own bound is left then.
        let mut submitted = 0;
        let deadline = Instant::now() + Duration::from_secs(20);
        while submitted < 2 && Instant::now() < deadline {
            submitted += usize::from(port.submit(submitted as u64, job(|| ())).is_ok());
        }
        assert_eq!((submitted, port.outstanding(), port.capacity()), (2, 2, 2));
        let refused = port
            .submit(9, job(|| 9u8))
            .expect_err("two results weren't taken");
        assert_eq!(
            *refused().downcast::<u8>().unwrap(),
            9,
            "the job comes back whole"
        );
        assert!(next(&mut port, &wake).1.is_ok());
        assert!(port.submit(9, job(|| ())).is_ok());
    }

    #[test]
    fn a_full_queue_gives_the_job_back() {
        let helpers = Helpers::start(1, 1).unwrap();
        let (release, gate) = mpsc::channel::<()>();
        let (entered, inside) = mpsc::channel();
        let mut holder = helpers.port(Wake::new().unwrap());
        let held = job(move || {
            entered.send(()).unwrap();
            let _ = gate.recv();
        });
        assert!(holder.submit(1, held).is_ok());
        inside.recv().unwrap();
        let wake = Wake::new().unwrap();
        let mut second = helpers.port(wake.clone());
        let mut third = helpers.port(Wake::new().unwrap());
        assert!(
            second.submit(2, job(|| ())).is_ok(),
            "one waits in the queue"
        );
        assert!(third.submit(3, job(|| ())).is_err());
        assert_eq!(third.outstanding(), 0);
        drop(release);
        assert_eq!(next(&mut second, &wake).0, 2);
    }

    #[test]
    fn every_job_of_several_cores_is_answered_once() {
        const JOBS: u64 = 3000;
        let helpers = Helpers::start(3, 16).unwrap();
        thread::scope(|scope| {
            for core in 0..3u64 {
                let wake = Wake::new().unwrap();
                let mut port = helpers.port(wake.clone());
                scope.spawn(move || {
                    let (mut overflow, mut answered) = (None, HashSet::new());
                    let mut next_token = 0;
                    while answered.len() < JOBS as usize {
                        while next_token < JOBS || overflow.is_some() {
                            let (token, work) = overflow.take().unwrap_or_else(|| {
                                next_token += 1;
                                let token = next_token - 1;
                                (token, job(move || core * JOBS + token))
                            });
                            if let Err(work) = port.submit(token, work) {
                                overflow = Some((token, work));
                                break;
                            }
                        }
                        if port.outstanding() == 0 {
                            thread::yield_now();
                            continue;
                        }
                        let (token, result) = next(&mut port, &wake);
                        let value = *result.unwrap().downcast::<u64>().unwrap();
                        assert_eq!(value, core * JOBS + token);
                        assert!(answered.insert(token), "{token} was answered twice");
                    }
                });
            }
        });
    }

    #[test]
    fn stopping_abandons_what_waits_and_leaves_a_job_that_hangs_behind() {
        let mut helpers = Helpers::start(1, 4).unwrap();
        let (release, gate) = mpsc::channel::<()>();
        let (entered, inside) = mpsc::channel();
        let mut port = helpers.port(Wake::new().unwrap());
        let hanging = job(move || {
            entered.send(()).unwrap();
            let _ = gate.recv();
        });
        assert!(port.submit(1, hanging).is_ok());
        inside.recv().unwrap();
        let (ran, waiting) = mpsc::channel();
        assert!(port.submit(2, job(move || ran.send(()).unwrap())).is_ok());
        assert!(!helpers.stop(Duration::from_millis(1)), "the job hangs");
        drop(release);
        assert!(helpers.stop(Duration::from_secs(20)));
        assert!(
            waiting.try_recv().is_err(),
            "the job that waited was abandoned"
        );
        assert!(
            port.submit(3, job(|| ())).is_err(),
            "nobody is left to run it"
        );
    }

    #[test]
    fn idle_helpers_end_at_once() {
        let mut helpers = Helpers::start(4, 4).unwrap();
        assert!(helpers.stop(Duration::from_secs(20)));
    }
}
