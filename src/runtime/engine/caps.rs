//! What this kernel lets us do, found by doing it: backports make version tests lie.

use std::fmt;
use std::io;
use std::net::Shutdown;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use io_uring::IoUring;

use super::Engine;
use super::poll::Poll;
use super::ring::Ring;
use crate::runtime::affinity::CpuId;
use crate::runtime::buf::{BUFFER_COUNT, BufPool};
use crate::runtime::executor::Core;
use crate::runtime::mailbox::Wake;
use crate::runtime::offload::HelperPort;
use crate::runtime::op::{Op, Output};

/// Which engine was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EngineChoice {
    /// io_uring where it works, else epoll.
    #[default]
    Auto,
    /// io_uring, or failure.
    Uring,
    /// epoll.
    Epoll,
}

/// Which engine runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineKind {
    /// io_uring.
    Uring,
    /// epoll.
    Epoll,
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Uring => "io_uring",
            Self::Epoll => "epoll",
        })
    }
}

/// The setup flags that this kernel takes. `SUBMIT_ALL` is 5.18, `COOP_TASKRUN` 5.19,
/// `SINGLE_ISSUER` 6.0, `DEFER_TASKRUN` 6.1, `NO_SQARRAY` 6.6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingFlags {
    submit_all: bool,
    coop_taskrun: bool,
    single_issuer: bool,
    defer_taskrun: bool,
    no_sqarray: bool,
    restricted: bool,
    /// The CPU of the kernel's thread that submits (`SQPOLL`, unprivileged since kernel 5.11).
    poller: Option<CpuId>,
}

/// How long a poller looks for entries in vain before it sleeps, in milliseconds. To wake it takes a
/// system call; until it sleeps its CPU does nothing else.
const POLLER_IDLE_MS: u32 = 20;

impl RingFlags {
    const ALL: Self = Self {
        submit_all: true,
        coop_taskrun: true,
        single_issuer: true,
        defer_taskrun: true,
        no_sqarray: true,
        restricted: false,
        poller: None,
    };

    pub(crate) fn build(self, sq: u32, cq: u32) -> io::Result<IoUring> {
        let mut builder = IoUring::builder();
        builder.setup_cqsize(cq).setup_clamp();
        if self.submit_all {
            builder.setup_submit_all();
        }
        if self.coop_taskrun {
            builder.setup_coop_taskrun();
        }
        if self.single_issuer {
            builder.setup_single_issuer();
        }
        if self.defer_taskrun {
            builder.setup_defer_taskrun();
        }
        if self.no_sqarray {
            builder.setup_no_sqarray();
        }
        if self.restricted {
            builder.setup_r_disabled();
        }
        if let Some(cpu) = self.poller {
            builder.setup_sqpoll(POLLER_IDLE_MS);
            builder.setup_sqpoll_cpu(u32::try_from(cpu.0).unwrap_or(u32::MAX));
        }
        builder.build(sq)
    }

    /// Whether the ring is to be restricted to what the engine uses before it is enabled.
    pub(crate) fn restricted(self) -> bool {
        self.restricted
    }

    /// Whether a thread of the kernel submits.
    pub(crate) fn polled(self) -> bool {
        self.poller.is_some()
    }

    /// The same for a ring with a poller on this CPU. It runs the task work itself, so that the flags
    /// that say when we would are refused beside it (`EINVAL`).
    fn on_poller(self, cpu: CpuId) -> Self {
        Self {
            poller: Some(cpu),
            defer_taskrun: false,
            coop_taskrun: false,
            ..self
        }
    }

    /// Flags to try, the best first: each step gives up what came to the kernel last.
    fn candidates() -> [Self; 6] {
        let all = Self::ALL;
        let no_sqarray = Self {
            no_sqarray: false,
            ..all
        };
        let no_defer = Self {
            defer_taskrun: false,
            ..no_sqarray
        };
        let no_single = Self {
            single_issuer: false,
            ..no_defer
        };
        let no_coop = Self {
            coop_taskrun: false,
            ..no_single
        };
        [
            all,
            no_sqarray,
            no_defer,
            no_single,
            no_coop,
            Self {
                submit_all: false,
                ..no_coop
            },
        ]
    }

    /// Names of the flags that this kernel refused, empty when it took all.
    pub fn missing(self) -> Vec<&'static str> {
        let polled = self.polled();
        [
            (self.no_sqarray, "NO_SQARRAY"),
            (self.defer_taskrun || polled, "DEFER_TASKRUN"),
            (self.single_issuer, "SINGLE_ISSUER"),
            (self.coop_taskrun || polled, "COOP_TASKRUN"),
            (self.submit_all, "SUBMIT_ALL"),
        ]
        .into_iter()
        .filter_map(|(has, name)| (!has).then_some(name))
        .collect()
    }
}

/// Whether rings take nothing but what the engine uses: no socket is made, bound or listened on
/// through them, and no driver commanded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Restriction {
    /// There is no ring to restrict.
    NoRing,
    /// They were made disabled, restricted and then enabled (kernel 5.10).
    Enforced,
    /// They take everything, because of this.
    Missing(String),
    /// They take everything: nobody asked for less.
    Off,
}

/// What to build each core's engine from, and why.
#[derive(Clone, Debug)]
pub struct Selection {
    /// The flags of the ring, `None` for epoll.
    ring: Option<RingFlags>,
    /// What its rings refuse.
    restriction: Restriction,
    /// Why this engine, in words for the log.
    pub reason: String,
}

impl Selection {
    /// Which engine it is.
    pub fn kind(&self) -> EngineKind {
        if self.ring.is_some() {
            EngineKind::Uring
        } else {
            EngineKind::Epoll
        }
    }

    /// What the rings of this engine refuse.
    pub fn restriction(&self) -> &Restriction {
        &self.restriction
    }

    /// Chooses the engine for this process; its rings are restricted where the kernel can do that.
    ///
    /// # Errors
    /// When io_uring was demanded and can't be had; the text says why and what to do.
    pub fn choose(choice: EngineChoice) -> Result<Self, String> {
        Self::choose_with(choice, true)
    }

    /// Chooses the engine for this process. `restrict`: its rings are to refuse what the engine does
    /// not use; where that can't be had, [`Self::restriction`] says why, and the engine is chosen
    /// without.
    ///
    /// # Errors
    /// As [`Self::choose`].
    pub fn choose_with(choice: EngineChoice, restrict: bool) -> Result<Self, String> {
        Self::choose_polled(choice, restrict, None)
    }

    /// Chooses the engine for this process. `poller`: rings are to have a thread of the kernel that
    /// submits, tried on this CPU; [`Self::on_poller`] gives each core its own. epoll has none, which
    /// the reason says.
    ///
    /// # Errors
    /// As [`Self::choose`].
    pub fn choose_polled(
        choice: EngineChoice,
        restrict: bool,
        poller: Option<CpuId>,
    ) -> Result<Self, String> {
        if choice == EngineChoice::Epoll {
            return Ok(Self {
                ring: None,
                restriction: Restriction::NoRing,
                reason: "asked for".to_owned(),
            });
        }
        match (probe(restrict, poller), choice) {
            (Ok((flags, restriction)), _) => {
                let missing = flags.missing();
                let polled = if flags.polled() {
                    "submitted by pollers; "
                } else {
                    ""
                };
                let reason = if missing.is_empty() {
                    "all setup flags, multishot accept and receive work".to_owned()
                } else {
                    format!("works without {}", missing.join(", "))
                };
                Ok(Self {
                    ring: Some(flags),
                    restriction,
                    reason: format!("{polled}{reason}"),
                })
            }
            (Err(why), EngineChoice::Uring) => Err(format!(
                "io_uring was asked for and can't be used: {why}; use --engine=auto or --engine=epoll"
            )),
            (Err(why), _) => Ok(Self {
                ring: None,
                restriction: Restriction::NoRing,
                reason: format!("no io_uring: {why}"),
            }),
        }
    }

    /// The same for a core whose poller is to run on this CPU; epoll has none.
    #[must_use]
    pub fn on_poller(&self, cpu: CpuId) -> Self {
        Self {
            ring: self.ring.map(|flags| flags.on_poller(cpu)),
            ..self.clone()
        }
    }

    /// Makes a core with this engine on the calling thread, which alone may use it.
    ///
    /// # Errors
    /// When neither the ring nor, for a choice that allows it, epoll can be set up.
    pub fn core(&self, wake: Arc<Wake>, helpers: Option<HelperPort>) -> io::Result<Core> {
        let (engine, buffers) = match self.ring {
            Some(flags) => {
                let (ring, buffers) = Ring::new(flags, BUFFER_COUNT, &wake)?;
                (Engine::Ring(Box::new(ring)), buffers)
            }
            None => {
                let poll = Poll::new(&wake)?;
                (
                    Engine::Poll(Box::new(poll)),
                    BufPool::software(BUFFER_COUNT),
                )
            }
        };
        Ok(Core::new(engine, buffers, wake, helpers))
    }

    /// The same with epoll, for a core whose ring could not be made.
    #[must_use]
    pub fn degraded(&self, why: &io::Error) -> Self {
        Self {
            ring: None,
            restriction: Restriction::NoRing,
            reason: format!("a ring could not be made: {}", explain(why)),
        }
    }
}

/// Whether files can be opened beneath a directory by `openat2(2)` (kernel 5.6), without which none is
/// served.
///
/// # Errors
/// What forbids it, in words.
pub fn check_openat2() -> Result<(), String> {
    use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
    use rustix::io::Errno;
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    match openat2(CWD, c"/", flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS) {
        Err(Errno::NOSYS) => Err("this kernel has no openat2(2)".to_owned()),
        Err(Errno::PERM) => {
            Err("openat2(2) is forbidden, most likely by a seccomp filter".to_owned())
        }
        _ => Ok(()),
    }
}

/// Says why io_uring failed, and what would mend it.
pub fn explain(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ENOSYS) => "this kernel has none (ENOSYS)".to_owned(),
        Some(libc::EPERM | libc::EACCES) => {
            let sysctl = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled");
            match sysctl.as_deref().map(str::trim) {
                Ok("0") | Err(_) => {
                    "forbidden (EPERM), most likely by a seccomp filter such as a container's"
                        .to_owned()
                }
                Ok(value) => format!("forbidden by sysctl kernel.io_uring_disabled={value}"),
            }
        }
        Some(libc::ENOMEM) => {
            "not enough locked memory (ENOMEM): raise RLIMIT_MEMLOCK, for example LimitMEMLOCK=infinity"
                .to_owned()
        }
        Some(libc::EMFILE | libc::ENFILE) => "no descriptors left".to_owned(),
        _ => error.to_string(),
    }
}

/// Finds the flags, those of a restricted ring first where one is asked for.
fn probe(restrict: bool, poller: Option<CpuId>) -> Result<(RingFlags, Restriction), String> {
    if !restrict {
        return find_flags(false, poller).map(|flags| (flags, Restriction::Off));
    }
    match find_flags(true, poller) {
        Ok(flags) => Ok((flags, Restriction::Enforced)),
        Err(why) => find_flags(false, poller).map(|flags| (flags, Restriction::Missing(why))),
    }
}

/// Finds the flags, then does a real multishot accept and receive.
fn find_flags(restricted: bool, poller: Option<CpuId>) -> Result<RingFlags, String> {
    let mut last = None;
    for flags in RingFlags::candidates() {
        let mut flags = RingFlags {
            restricted,
            ..flags
        };
        if let Some(cpu) = poller {
            flags = flags.on_poller(cpu);
        }
        match flags.build(8, 32) {
            Ok(ring) => {
                drop(ring);
                return exercise(flags).map(|()| flags);
            }
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => last = Some(error),
            Err(error) => return Err(explain(&error)),
        }
    }
    Err(last.map_or_else(|| "refused".to_owned(), |error| explain(&error)))
}

/// Accepts and receives once through a ring with these flags, over an abstract unix socket.
fn exercise(flags: RingFlags) -> Result<(), String> {
    let failed = |what: &str, error: &dyn fmt::Display| format!("{what} does not work: {error}");
    let wake = Wake::new().map_err(|error| failed("eventfd", &error))?;
    let (ring, buffers) = Ring::new(flags, 4, &wake).map_err(|error| explain(&error))?;
    let core = Core::new(Engine::Ring(Box::new(ring)), buffers, wake, None);
    let name = format!(
        "beltway-probe-{}-{:?}",
        std::process::id(),
        std::thread::current().id()
    );
    let listener = SocketAddr::from_abstract_name(name)
        .and_then(|address| UnixListener::bind_addr(&address))
        .map_err(|error| failed("a unix socket", &error))?;
    let client = listener
        .local_addr()
        .and_then(|address| UnixStream::connect_addr(&address))
        .and_then(|client| io::Write::write_all(&mut &client, b"beltway").map(|()| client))
        .and_then(|client| client.shutdown(Shutdown::Write).map(|()| client))
        .map_err(|error| failed("a unix socket", &error))?;
    let outcome: Rc<std::cell::RefCell<Option<Result<(), String>>>> = Rc::default();
    let listening = core.own(listener.into());
    let (told, doing) = (Rc::clone(&outcome), core.clone());
    core.spawn(async move {
        let accepted = doing
            .many(Op::Accept {
                listener: listening,
                one: false,
            })
            .next()
            .await;
        let result = match accepted.output {
            Output::Socket(socket) if accepted.more => {
                let received = doing.many(Op::Recv { socket, one: false }).next().await;
                match received.output {
                    Output::Received(bytes) if received.more && *bytes == *b"beltway" => Ok(()),
                    _ => Err(format!(
                        "multishot receive does not work: {:?}",
                        received.result
                    )),
                }
            }
            _ => Err(format!(
                "multishot accept does not work: {:?}",
                accepted.result
            )),
        };
        *told.borrow_mut() = Some(result);
    });
    let deadline = Instant::now() + Duration::from_secs(5);
    while outcome.borrow().is_none() && Instant::now() < deadline {
        core.turn(Some(Duration::from_millis(50)))
            .map_err(|error| failed("enter", &error))?;
    }
    drop(client);
    core.shut_down();
    let outcome = outcome.borrow_mut().take();
    outcome.unwrap_or_else(|| Err("a receive through the ring never completed".to_owned()))
}
