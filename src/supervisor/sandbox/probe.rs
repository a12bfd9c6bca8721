//! Tries what the sandbox forbids, from the inside: the one way to know that it holds.

use std::io;
use std::path::Path;

use io_uring::IoUring;
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, Ipv4Addr, SocketAddrV4, SocketFlags, SocketType, bind, listen, socket_with,
};
use serde::{Deserialize, Serialize};

use super::Grants;
use crate::supervisor::sys::filter::try_exec;

/// Something that was tried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// What.
    pub what: String,
    /// Whether it was refused with EPERM or EACCES. What failed for another reason was not.
    pub refused: bool,
    /// How it ended, in words.
    pub how: String,
}

impl Attempt {
    fn new<T>(what: &str, result: Result<T, Errno>) -> Self {
        Self {
            what: what.to_owned(),
            refused: matches!(result, Err(Errno::PERM | Errno::ACCESS)),
            how: match result {
                Ok(_) => "it was allowed".to_owned(),
                Err(errno) => io::Error::from(errno).to_string(),
            },
        }
    }
}

/// Where everybody may write who isn't confined.
const PLACES: [&str; 3] = ["/tmp", "/var/tmp", "/dev/shm"];

/// Tries, as this process, to open the password hashes, to write a file where `grants` has no place for
/// it, to make packet and netlink sockets, to bind (only a port where a local address may be bound) and
/// to listen, to exec, and to set up a ring. What succeeds is undone at once.
pub fn probe(grants: &Grants) -> Vec<Attempt> {
    let read = OFlags::RDONLY | OFlags::CLOEXEC;
    let write = OFlags::WRONLY | OFlags::TMPFILE | OFlags::CLOEXEC;
    let make = |family, kind| socket_with(family, kind, SocketFlags::CLOEXEC, None);
    let stream = || make(AddressFamily::INET, SocketType::STREAM);
    let granted = |place: &&&str| {
        grants
            .write
            .iter()
            .any(|it| Path::new(place).starts_with(&it.path))
    };
    let place = PLACES.iter().find(|place| !granted(place)).unwrap_or(&"/");
    let (to_bind, port) = match grants.bind {
        false => ("bind", 0),
        true => ("bind a port", u16::MAX),
    };
    let local = SocketAddrV4::new(Ipv4Addr::LOCALHOST, port);
    vec![
        Attempt::new("open /etc/shadow", open("/etc/shadow", read, Mode::empty())),
        Attempt::new(
            &format!("write beneath {place}"),
            open(*place, write, Mode::RUSR),
        ),
        Attempt::new(
            "make a packet socket",
            make(AddressFamily::PACKET, SocketType::RAW),
        ),
        Attempt::new(
            "make a netlink socket",
            make(AddressFamily::NETLINK, SocketType::RAW),
        ),
        Attempt::new(to_bind, stream().and_then(|socket| bind(&socket, &local))),
        Attempt::new("listen", stream().and_then(|socket| listen(&socket, 1))),
        Attempt::new("exec", Err::<(), _>(errno(&try_exec()))),
        Attempt::new(
            "set up a ring",
            IoUring::new(1).map_err(|error| errno(&error)),
        ),
    ]
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::alone::{alone, is_root, skip};
    use crate::supervisor::privileges;
    use crate::supervisor::sandbox::State;
    use crate::supervisor::sandbox::calls::restrict_calls;
    use crate::supervisor::sandbox::files::{Grant, restrict_files};

    #[test]
    fn everything_is_refused_inside() {
        alone(module_path!(), "everything_is_refused_inside", |_| {
            let outside = probe(&Grants::default());
            let allowed = |what: &str| outside.iter().any(|one| one.what == what && !one.refused);
            assert!(allowed("bind") && allowed("exec"), "{outside:?}");
            let identity = privileges::resolve(None, None, is_root()).unwrap();
            privileges::drop_to(identity.as_ref()).unwrap();
            let files = restrict_files(&Grants::default());
            let (calls, notifier) = restrict_calls(false);
            for state in [&files, &calls] {
                if let State::Missing(why) = state {
                    return skip(why);
                }
            }
            let inside = probe(&Grants::default());
            let held: Vec<_> = inside.iter().filter(|one| !one.refused).collect();
            assert!(held.is_empty(), "{held:?}");
            assert_eq!(inside.len(), 8);
            if let Some(notifier) = notifier {
                // All but those of files, and the netlink socket.
                assert_eq!(notifier.refused(), 5, "{:?}", notifier.by_call());
            }
        });
    }

    #[test]
    fn what_is_granted_is_not_tried() {
        let mut grants = Grants::default();
        let tried = |grants: &Grants| {
            let attempts = probe(grants);
            let what = attempts.into_iter().map(|attempt| attempt.what);
            what.filter(|what| what.starts_with("write"))
                .collect::<Vec<_>>()
        };
        assert_eq!(tried(&grants), ["write beneath /tmp"]);
        grants.write.push(Grant {
            path: "/tmp".into(),
            identity: None,
            why: String::new(),
        });
        assert_eq!(tried(&grants), ["write beneath /var/tmp"]);
    }

    #[test]
    fn a_failure_for_another_reason_is_no_refusal() {
        let failed = Attempt::new::<()>("exec", Err(Errno::NOENT));
        assert!(!failed.refused && failed.how.contains("No such file"));
        assert!(Attempt::new::<()>("bind", Err(Errno::ACCESS)).refused);
    }
}
