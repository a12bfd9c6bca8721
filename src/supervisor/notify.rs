//! Tells the service manager how the server is (sd_notify(3)): ready, reloading, stopping, alive.
//!
//! The crate `sd-notify` has the words. The datagram is sent here: the crate finds the socket through
//! the environment at each call, takes its name for a path even when it is an abstract one, and may
//! wait while sending. Here the environment is read once and never changed. NOTIFY_SOCKET stays in it
//! for the program that an upgrade starts in this process; whoever starts a worker takes
//! [`VARIABLES`] out of the worker's.

use std::fmt::Write as _;
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType};
use sd_notify::NotifyState;

/// The variables of the service manager: for the main process alone.
pub const VARIABLES: [&str; 3] = ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"];

/// Longest text of a status, in bytes; the rest is cut off. A datagram must fit into the socket.
const STATUS_BYTES_MAX: usize = 1024;

/// The way to the service manager, or nowhere when there is none.
#[derive(Debug)]
pub struct Notifier {
    target: Option<Target>,
    watchdog: Option<Watchdog>,
}

#[derive(Debug)]
struct Target {
    socket: OwnedFd,
    address: SocketAddrUnix,
}

#[derive(Debug)]
struct Watchdog {
    /// Half of what the service manager allows.
    every: Duration,
    next: Instant,
}

impl Notifier {
    /// The service manager of this process.
    pub fn of_this_process(now: Instant) -> Self {
        let variable = |name: &str| std::env::var(name).ok();
        Self::new(variable, std::process::id(), now)
    }

    /// The service manager that these variables name. One that can't be reached is logged, and the
    /// server runs without.
    pub fn new(variable: impl Fn(&str) -> Option<String>, pid: u32, now: Instant) -> Self {
        let [socket, usec, for_pid] = VARIABLES.map(&variable);
        let target = socket.and_then(|name| {
            Target::named(&name)
                .inspect_err(|error| tracing::warn!(name, %error, "NOTIFY_SOCKET can't be used"))
                .ok()
        });
        let every = watchdog_period(usec.as_deref(), for_pid.as_deref(), pid);
        Self {
            watchdog: every
                .filter(|_| target.is_some())
                .map(|every| Watchdog { every, next: now }),
            target,
        }
    }

    /// Whether a service manager listens.
    pub fn is_connected(&self) -> bool {
        self.target.is_some()
    }

    /// The server serves: after the start, and after each reload or upgrade, whether it came into force
    /// or not.
    pub fn ready(&self, status: &str) {
        self.send(&[NotifyState::Ready, NotifyState::Status(&one_line(status))]);
    }

    /// A reload or an upgrade begins. [`ready`](Self::ready) must follow.
    pub fn reloading(&self, status: &str) {
        let status = one_line(status);
        match NotifyState::monotonic_usec_now() {
            Ok(usec) => self.send(&[NotifyState::Reloading, usec, NotifyState::Status(&status)]),
            // Without the time, systemd 253 and later would call it a failed reload.
            Err(error) => tracing::warn!(%error, "no monotonic clock for RELOADING=1"),
        }
    }

    /// The server ends.
    pub fn stopping(&self, status: &str) {
        self.send(&[
            NotifyState::Stopping,
            NotifyState::Status(&one_line(status)),
        ]);
    }

    /// What the server does, for `systemctl status`.
    pub fn status(&self, status: &str) {
        self.send(&[NotifyState::Status(&one_line(status))]);
    }

    /// When [`tick`](Self::tick) must be called, if the service manager has a watchdog.
    pub fn deadline(&self) -> Option<Instant> {
        self.watchdog.as_ref().map(|watchdog| watchdog.next)
    }

    /// Says that the master's loop turns, when it is time to.
    pub fn tick(&mut self, now: Instant) {
        let Some(watchdog) = self.watchdog.as_mut().filter(|it| it.next <= now) else {
            return;
        };
        watchdog.next = now + watchdog.every;
        self.send(&[NotifyState::Watchdog]);
    }

    fn send(&self, states: &[NotifyState<'_>]) {
        let Some(Target { socket, address }) = &self.target else {
            return;
        };
        let mut message = String::new();
        for state in states {
            let _ = writeln!(message, "{state}");
        }
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        if let Err(error) = rustix::net::sendto(socket, message.as_bytes(), flags, address) {
            // Full or gone: the server's work doesn't depend on it.
            tracing::warn!(%error, "the service manager can't be told: {}", message.trim_end());
        }
    }
}

impl Target {
    /// A path, or an abstract name behind `@`.
    fn named(name: &str) -> io::Result<Self> {
        let address = match (name.strip_prefix('@'), name.starts_with('/')) {
            (Some(name), _) => SocketAddrUnix::new_abstract_name(name.as_bytes())?,
            (None, true) => SocketAddrUnix::new(name)?,
            (None, false) => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    "neither a path nor an abstract name",
                ));
            }
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?;
        Ok(Self { socket, address })
    }
}

/// How often to say that the server is alive: half of the time after which it would be taken for dead
/// (sd_watchdog_enabled(3)). None without a watchdog, or with one for another process.
fn watchdog_period(usec: Option<&str>, for_pid: Option<&str>, pid: u32) -> Option<Duration> {
    let usec: u64 = usec?.parse().ok().filter(|usec| *usec > 0)?;
    let is_ours = for_pid.is_none_or(|for_pid| for_pid.parse() == Ok(pid));
    is_ours.then(|| Duration::from_micros((usec / 2).max(1)))
}

/// One line of bounded length: an end of line in it would begin another field.
fn one_line(status: &str) -> String {
    let mut line = String::new();
    for character in status.trim().chars() {
        let character = if character.is_control() {
            ' '
        } else {
            character
        };
        if line.len() + character.len_utf8() > STATUS_BYTES_MAX {
            break;
        }
        line.push(character);
    }
    line
}

#[cfg(test)]
mod tests {
    use std::os::linux::net::SocketAddrExt as _;
    use std::os::unix::net::{SocketAddr, UnixDatagram};

    use super::*;

    const PID: u32 = 42;

    fn notifier(socket: &str, usec: Option<&str>, now: Instant) -> Notifier {
        let variable = |name: &str| match name {
            "NOTIFY_SOCKET" => Some(socket.to_owned()),
            "WATCHDOG_USEC" => usec.map(str::to_owned),
            _ => None,
        };
        Notifier::new(variable, PID, now)
    }

    fn received(manager: &UnixDatagram) -> Vec<String> {
        let mut buffer = [0; 4096];
        let length = manager.recv(&mut buffer).unwrap();
        let text = std::str::from_utf8(&buffer[..length]).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    fn has_more(manager: &UnixDatagram) -> bool {
        manager.set_nonblocking(true).unwrap();
        let more = manager.recv(&mut [0; 1]).is_ok();
        manager.set_nonblocking(false).unwrap();
        more
    }

    #[test]
    fn states_are_told_to_a_socket_with_a_path() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let notifier = notifier(path.to_str().unwrap(), None, Instant::now());
        assert!(notifier.is_connected());
        notifier.ready("2 cores\nMAINPID=1");
        assert_eq!(received(&manager), ["READY=1", "STATUS=2 cores MAINPID=1"]);
        notifier.reloading("reading");
        let lines = received(&manager);
        assert_eq!((&*lines[0], &*lines[2]), ("RELOADING=1", "STATUS=reading"));
        let usec = lines[1].strip_prefix("MONOTONIC_USEC=").unwrap();
        assert!(usec.parse::<u64>().unwrap() > 0);
        notifier.stopping("draining");
        assert_eq!(received(&manager), ["STOPPING=1", "STATUS=draining"]);
        notifier.status(&"ä".repeat(STATUS_BYTES_MAX));
        assert_eq!(
            received(&manager)[0].len(),
            "STATUS=".len() + STATUS_BYTES_MAX
        );
        assert_eq!(notifier.deadline(), None);
    }

    #[test]
    fn an_abstract_socket_is_reached() {
        let directory = tempfile::tempdir().unwrap();
        // The directory's name is one that nobody else has.
        let name = directory.path().to_str().unwrap();
        let address = SocketAddr::from_abstract_name(name).unwrap();
        let manager = UnixDatagram::bind_addr(&address).unwrap();
        notifier(&format!("@{name}"), None, Instant::now()).ready("");
        assert_eq!(received(&manager), ["READY=1", "STATUS="]);
    }

    #[test]
    fn the_watchdog_is_fed_at_half_its_time() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let mut now = Instant::now();
        let mut notifier = notifier(path.to_str().unwrap(), Some("3000000"), now);
        notifier.tick(now);
        assert_eq!(received(&manager), ["WATCHDOG=1"]);
        assert_eq!(notifier.deadline(), Some(now + Duration::from_millis(1500)));
        now += Duration::from_millis(1499);
        notifier.tick(now);
        assert!(!has_more(&manager));
        now += Duration::from_millis(1);
        notifier.tick(now);
        assert_eq!(received(&manager), ["WATCHDOG=1"]);
    }

    #[test]
    fn a_watchdog_of_somebody_else_is_not_ours() {
        let half = Some(Duration::from_millis(500));
        assert_eq!(watchdog_period(Some("1000000"), None, PID), half);
        assert_eq!(watchdog_period(Some("1000000"), Some("42"), PID), half);
        for (usec, pid) in [
            (Some("1000000"), Some("41")),
            (Some("1000000"), Some("x")),
            (Some("0"), None),
            (Some("x"), None),
            (None, Some("42")),
        ] {
            assert_eq!(watchdog_period(usec, pid, PID), None);
        }
    }

    #[test]
    fn without_a_manager_nothing_is_told_and_nothing_fails() {
        let now = Instant::now();
        let mut nobody = Notifier::new(|_| None, PID, now);
        assert!(!nobody.is_connected());
        nobody.ready("");
        nobody.tick(now);
        let wrong = notifier("relative", Some("1000000"), now);
        assert!(!wrong.is_connected());
        assert_eq!(wrong.deadline(), None);
        // A manager that has gone.
        notifier("/nonexistent/notify", None, now).stopping("");
    }
}
