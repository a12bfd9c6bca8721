//! Bounded messages between threads, with a coalesced wake.
//!
//! A core sleeps in its engine with an eventfd among what it polls. Whoever has something for it
//! puts the message into a ring of its own (one sender, one receiver: no lock) and wakes the core;
//! however many messages arrive while the core is busy, one write to the eventfd is paid for.
//!
//! The order for the owner is: the eventfd is readable → [`Wake::drain`] → pop every receiver until
//! it is empty → sleep. A core may hold any number of receivers that share its one [`Wake`].

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::event::{EventfdFlags, eventfd};

/// Wakes the thread that owns it, once for many reasons.
#[derive(Debug)]
pub struct Wake {
    coalesced: Coalesced<AtomicBool, Eventfd>,
    /// How often the owner has drained.
    drains: AtomicU64,
}

impl Wake {
    /// A wake that nobody has asked for yet.
    ///
    /// # Errors
    /// EMFILE, ENFILE or ENOMEM from eventfd(2).
    pub fn new() -> io::Result<Arc<Self>> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Arc::new(Self {
            coalesced: Coalesced {
                flag: AtomicBool::new(false),
                signal: Eventfd(fd),
            },
            drains: AtomicU64::new(0),
        }))
    }

    /// Makes [`fd`](Self::fd) readable until the owner drains. Callable from any thread; everything
    /// that the caller wrote before is visible to the owner after its drain.
    pub fn wake(&self) {
        self.coalesced.wake();
    }

    /// Forgets the wakes so far. The owner calls it before it looks for what it was woken for.
    pub fn drain(&self) {
        self.drains.fetch_add(1, Ordering::Relaxed);
        self.coalesced.drain();
    }

    /// While the owner hasn't answered a wake: how often it had answered before. The same number seen
    /// twice is the same silence.
    pub fn unanswered(&self) -> Option<u64> {
        let drains = self.drains.load(Ordering::Relaxed);
        self.coalesced
            .flag
            .load(Ordering::Relaxed)
            .then_some(drains)
    }

    /// The eventfd to poll for reading: non-blocking, closed on exec.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.coalesced.signal.0.as_fd()
    }
}

impl AsFd for Wake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd()
    }
}

/// What the wake needs of an atomic flag. The model test puts in loom's.
trait Flag {
    /// Sets the flag and says what it was; acquires and releases.
    fn swap(&self, raised: bool) -> bool;
}

/// What the wake needs of an eventfd. The model test puts in a counter without any ordering.
trait Signal {
    /// Makes the signal readable.
    fn raise(&self);
    /// Makes the signal unreadable, when it is readable.
    fn clear(&self);
}

/// The protocol between any number of wakers and one owner.
///
/// No wake is lost. A waker publishes its message, then swaps the flag to true (W). The owner reads
/// the signal, then swaps the flag to false (D), then pops. All swaps of one flag have one total
/// order, in which each acquires what those before it released, so for every W:
///
/// - W saw true. Then it stands between the W' that raised the flag and the D that clears it, and
///   D acquires W's message: the owner pops it after D. That D will come, because W' (which saw
///   false) writes the signal, and no drain before D can have taken that signal away without
///   swapping the flag after W' itself, which would make it D.
/// - W saw false. Then it writes the signal. If a drain reads this signal, its swap comes later, and
///   again acquires W's message. Otherwise the signal stays readable and the owner doesn't sleep.
///
/// Clearing the flag before reading the signal would break the first case: the read could take
/// away the signal of a W that stands after D, and the next W would see true and write nothing.
/// A waker must swap and not look at the flag first: only a swap makes D acquire its message.
/// The cost of the order chosen is a wake for nothing now and then.
#[derive(Debug)]
struct Coalesced<F, S> {
    flag: F,
    signal: S,
}

impl<F: Flag, S: Signal> Coalesced<F, S> {
    fn wake(&self) {
        if !self.flag.swap(true) {
            self.signal.raise();
        }
    }

    fn drain(&self) {
        self.signal.clear();
        self.flag.swap(false);
    }
}

impl Flag for AtomicBool {
    fn swap(&self, raised: bool) -> bool {
        self.swap(raised, Ordering::AcqRel)
    }
}

/// The counter of eventfd(2).
#[derive(Debug)]
struct Eventfd(OwnedFd);

impl Signal for Eventfd {
    fn raise(&self) {
        // A non-blocking eventfd is never interrupted, and it refuses (EAGAIN) only when its
        // counter is at its maximum, and then it is readable, which is all that was wanted.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    fn clear(&self) {
        // EAGAIN: the waker has set the flag and not written yet, or the engine has read it.
        let _ = rustix::io::read(&self.0, &mut [0u8; 8]);
    }
}

/// The message that didn't fit: the ring was full.
#[derive(Debug, PartialEq, Eq)]
pub struct Full<T>(pub T);

/// The sending end: one thread at a time.
#[derive(Debug)]
pub struct Sender<T> {
    ring: rtrb::Producer<T>,
    /// Dropped after the ring, so that the receiver that it wakes finds the ring abandoned.
    wake: WakeAtEnd,
}

/// The receiving end: the thread that owns the [`Wake`].
#[derive(Debug)]
pub struct Receiver<T> {
    ring: rtrb::Consumer<T>,
}

/// A ring for at most `capacity` messages to the owner of `wake`. It never allocates again.
pub fn channel<T>(capacity: usize, wake: Arc<Wake>) -> (Sender<T>, Receiver<T>) {
    let (producer, consumer) = rtrb::RingBuffer::new(capacity);
    (
        Sender {
            ring: producer,
            wake: WakeAtEnd(wake),
        },
        Receiver { ring: consumer },
    )
}

impl<T> Sender<T> {
    /// Hands over a message and wakes the receiver. Never blocks.
    ///
    /// # Errors
    /// [`Full`] gives the message back; the receiver was woken for the ones before it.
    pub fn try_send(&mut self, message: T) -> Result<(), Full<T>> {
        match self.ring.push(message) {
            Ok(()) => {
                self.wake.0.wake();
                Ok(())
            }
            Err(rtrb::PushError::Full(message)) => Err(Full(message)),
        }
    }

    /// Whether the receiver is gone, so that nobody will ever take another message.
    pub fn is_closed(&self) -> bool {
        self.ring.is_abandoned()
    }
}

/// Wakes a last time when it is dropped.
#[derive(Debug)]
struct WakeAtEnd(Arc<Wake>);

impl Drop for WakeAtEnd {
    fn drop(&mut self) {
        self.0.wake();
    }
}

impl<T> Receiver<T> {
    /// The oldest message, if there is one.
    pub fn pop(&mut self) -> Option<T> {
        self.ring.pop().ok()
    }

    /// Whether the sender is gone and nothing is left to pop.
    pub fn is_closed(&self) -> bool {
        // In this order: a sender that is gone adds nothing more.
        self.ring.is_abandoned() && self.ring.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::Duration;

    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;

    fn is_readable(wake: &Wake, timeout: Duration) -> bool {
        let timeout = Timespec::try_from(timeout).unwrap();
        let mut fds = [PollFd::new(wake, PollFlags::IN)];
        poll(&mut fds, Some(&timeout)).unwrap() == 1
    }

    #[test]
    fn many_sends_cost_one_write() {
        let wake = Wake::new().unwrap();
        let (mut sender, mut receiver) = channel(8, wake.clone());
        for message in 0..5 {
            sender.try_send(message).unwrap();
        }
        let mut count = [0u8; 8];
        rustix::io::read(wake.fd(), &mut count).unwrap();
        assert_eq!(u64::from_ne_bytes(count), 1);
        assert_eq!(wake.unanswered(), Some(0));
        wake.drain();
        assert_eq!(wake.unanswered(), None);
        let received: Vec<_> = std::iter::from_fn(|| receiver.pop()).collect();
        assert_eq!(received, [0, 1, 2, 3, 4]);
        assert!(!is_readable(&wake, Duration::ZERO));
        sender.try_send(5).unwrap();
        assert!(
            is_readable(&wake, Duration::ZERO),
            "after a drain the next send wakes again"
        );
    }

    #[test]
    fn a_full_ring_gives_the_message_back() {
        let (mut sender, mut receiver) = channel(2, Wake::new().unwrap());
        assert_eq!(sender.try_send('a'), Ok(()));
        assert_eq!(sender.try_send('b'), Ok(()));
        assert_eq!(sender.try_send('c'), Err(Full('c')));
        assert_eq!(receiver.pop(), Some('a'));
        assert_eq!(sender.try_send('c'), Ok(()));
    }

    #[test]
    fn each_end_learns_that_the_other_is_gone_after_what_was_sent() {
        let wake = Wake::new().unwrap();
        let (mut sender, mut receiver) = channel(2, wake.clone());
        sender.try_send(1).unwrap();
        assert!(!sender.is_closed() && !receiver.is_closed());
        wake.drain();
        drop(sender);
        assert!(is_readable(&wake, Duration::ZERO));
        assert!(!receiver.is_closed(), "a message is left");
        assert_eq!(receiver.pop(), Some(1));
        assert!(receiver.is_closed());

        let (sender, receiver) = channel::<u8>(2, wake);
        drop(receiver);
        assert!(sender.is_closed());
    }

    /// Threads that send as fast as they can to an owner that sleeps whenever it has nothing: a
    /// wake that is lost leaves the owner asleep with messages in its ring.
    #[test]
    fn no_wake_is_lost_between_threads() {
        const SENDERS: u64 = 4;
        const MESSAGES: u64 = 20_000;
        let wake = Wake::new().unwrap();
        let (senders, mut receivers): (Vec<_>, Vec<_>) = (0..SENDERS)
            .map(|_| channel::<u64>(16, wake.clone()))
            .unzip();
        thread::scope(|scope| {
            for mut sender in senders {
                scope.spawn(move || {
                    for message in 0..MESSAGES {
                        while sender.try_send(message).is_err() {
                            thread::yield_now();
                        }
                    }
                });
            }
            let mut next = vec![0; receivers.len()];
            while next.iter().sum::<u64>() < SENDERS * MESSAGES {
                assert!(
                    is_readable(&wake, Duration::from_secs(20)),
                    "asleep at {next:?}"
                );
                wake.drain();
                for (receiver, next) in receivers.iter_mut().zip(&mut next) {
                    while let Some(message) = receiver.pop() {
                        assert_eq!(message, *next, "in order, each once");
                        *next += 1;
                    }
                }
            }
        });
    }

    /// The protocol under every reordering that the memory model allows and every interleaving with
    /// up to three preemptions (all of them take half a minute and find nothing more).
    mod model {
        use loom::sync::Arc;
        use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
        use loom::thread;

        use super::super::{Coalesced, Flag, Signal};

        impl Flag for AtomicBool {
            fn swap(&self, raised: bool) -> bool {
                self.swap(raised, Ordering::AcqRel)
            }
        }

        /// Weaker than an eventfd: it orders nothing.
        impl Signal for AtomicUsize {
            fn raise(&self) {
                self.fetch_add(1, Ordering::Relaxed);
            }

            fn clear(&self) {
                self.swap(0, Ordering::Relaxed);
            }
        }

        type Protocol = Coalesced<AtomicBool, AtomicUsize>;

        /// Two wakers with one message each, and an owner that drains twice. At the end either the
        /// owner has seen both messages or the signal says that it must look again.
        fn check(drain: fn(&Protocol)) {
            let mut model = loom::model::Builder::new();
            model.preemption_bound = Some(3);
            model.check(move || {
                let shared = Arc::new((
                    Coalesced {
                        flag: AtomicBool::new(false),
                        signal: AtomicUsize::new(0),
                    },
                    [AtomicUsize::new(0), AtomicUsize::new(0)],
                ));
                let wakers: Vec<_> = (0..2)
                    .map(|waker| {
                        let shared = shared.clone();
                        thread::spawn(move || {
                            shared.1[waker].store(1, Ordering::Relaxed);
                            shared.0.wake();
                        })
                    })
                    .collect();
                let mut seen = 0;
                for _ in 0..2 {
                    drain(&shared.0);
                    seen = shared.1.iter().map(|m| m.load(Ordering::Relaxed)).sum();
                }
                for waker in wakers {
                    waker.join().unwrap();
                }
                let readable = shared.0.signal.load(Ordering::Relaxed) > 0;
                assert!(
                    seen == 2 || readable,
                    "the owner sleeps and a message waits"
                );
            });
        }

        #[test]
        fn no_wake_is_lost() {
            check(Coalesced::drain);
        }

        #[test]
        #[should_panic(expected = "a message waits")]
        fn the_model_finds_the_wake_that_the_other_order_loses() {
            check(|protocol| {
                Flag::swap(&protocol.flag, false);
                protocol.signal.clear();
            });
        }
    }
}
