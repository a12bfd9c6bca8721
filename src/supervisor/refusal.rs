//! Says why a server can't start or can't listen on an address: what, where, and what to do.

use std::fmt::Write as _;
use std::io;
use std::path::Path;

use super::bind::ListenError;
use super::worker::{Origin, StartError};
use crate::config::model::{ListenAddr, Place};
use crate::net::owner::{Owner, listener_owner};

/// Why a start failed, in whole lines.
pub fn start_refused(error: &StartError, origin: Origin) -> String {
    match error {
        StartError::Listen(errors) => {
            let texts = errors.iter().map(|error| not_bound(error, origin));
            texts.collect()
        }
        StartError::Other { what, help } => message(what, None, std::slice::from_ref(help)),
    }
}

/// Why one address can't be listened on, and who is there where that is known.
pub(super) fn not_bound(error: &ListenError, origin: Origin) -> String {
    let ListenError {
        address,
        place,
        error,
    } = error;
    let owner = match address {
        ListenAddr::Tcp { address, .. } if error.kind() == io::ErrorKind::AddrInUse => {
            listener_owner(*address)
        }
        _ => None,
    };
    refused(address, place, error, owner.as_ref(), origin)
}

/// An error with its place and what to do, as the other errors of a configuration look.
pub(super) fn message(what: &str, place: Option<&Place>, help: &[String]) -> String {
    let mut text = format!("error: {what}\n");
    if let Some(place) = place.filter(|place| place.line > 0) {
        let _ = writeln!(
            text,
            " --> {}:{}:{}",
            place.source, place.line, place.column
        );
    }
    for help in help.iter().filter(|help| !help.is_empty()) {
        let _ = writeln!(text, "  = help: {help}");
    }
    text
}

/// Why no body can be written to this directory, and what to do.
pub(super) fn not_writable(who: &str, directory: &Path, error: &io::Error) -> (String, String) {
    let path = directory.display();
    let what =
        format!("{who} can't make files in {path}, the directory of `buffer.spill`: {error}");
    let help = format!(
        "give it the right to, for example `chown USER {path}`; or name another directory; or set \
         `user` in [server]"
    );
    (what, help)
}

/// Why the kernel would not listen on an address.
fn refused(
    address: &ListenAddr,
    place: &Place,
    error: &io::Error,
    owner: Option<&Owner>,
    origin: Origin,
) -> String {
    let elsewhere = match (origin, address) {
        (Origin::Serve, ListenAddr::Tcp { address, .. }) => {
            let mut other = *address;
            other.set_port(address.port().checked_add(1).unwrap_or(8080));
            format!(
                "listen elsewhere: -l {other}, or -l {}:0 for any free port",
                host(address)
            )
        }
        (Origin::Serve, ListenAddr::Unix(_) | ListenAddr::Inherited(_)) => {
            "listen elsewhere with -l".to_owned()
        }
        (Origin::Run, _) => "or change the address in the configuration".to_owned(),
    };
    let port = match address {
        ListenAddr::Tcp { address, .. } => Some(address.port()),
        ListenAddr::Unix(_) => None,
        ListenAddr::Inherited(name) => {
            let help =
                format!("write FileDescriptorName={name} into the socket unit, and start it");
            let what = format!("can't listen on {address}: {error}");
            return message(&what, Some(place), &[help, elsewhere]);
        }
    };
    let (what, help) = match (error.kind(), port) {
        (io::ErrorKind::AddrInUse, Some(_)) if owner.is_some_and(is_this_process) => (
            format!("{address} can't be listened on beside an address of the configuration in force"),
            vec![
                "a wildcard address and one that it includes exclude each other: remove the one with \
                 a first reload, and add the other with a second one"
                    .to_owned(),
            ],
        ),
        (io::ErrorKind::AddrInUse, Some(port)) => match owner {
            Some(Owner { pid, name }) => (
                format!("{address} is in use by {name} (process {pid})"),
                vec![format!("stop it with `kill {pid}`"), elsewhere],
            ),
            None => (
                format!("{address} is in use by another process"),
                vec![
                    format!("find it with `sudo ss -ltnp 'sport = :{port}'`"),
                    elsewhere,
                ],
            ),
        },
        (io::ErrorKind::AddrInUse, None) => (
            format!("another server listens on {address}"),
            vec!["stop it, or use another path".to_owned()],
        ),
        (io::ErrorKind::PermissionDenied, Some(port)) if port < 1024 => (
            format!("this user may not listen on port {port}"),
            vec![
                "start as root, or allow the program: \
                 `sudo setcap cap_net_bind_service=+ep \"$(command -v beltway)\"`"
                    .to_owned(),
                elsewhere,
            ],
        ),
        (io::ErrorKind::AddrNotAvailable, Some(_)) => (
            format!("{address} is not an address of this machine"),
            vec!["`ip address` shows which are; :PORT is all of them".to_owned()],
        ),
        (io::ErrorKind::NotFound, None) => (
            format!("the directory of {address} doesn't exist"),
            vec!["create it, or use another path".to_owned()],
        ),
        _ => (
            format!("can't listen on {address}: {error}"),
            vec![elsewhere],
        ),
    };
    message(&what, Some(place), &help)
}

/// A reload can find an address taken by a socket of ours that it is about to remove.
fn is_this_process(owner: &Owner) -> bool {
    owner.pid == std::process::id()
}

fn host(address: &std::net::SocketAddr) -> String {
    match address.ip() {
        std::net::IpAddr::V4(ip) => ip.to_string(),
        std::net::IpAddr::V6(ip) => format!("[{ip}]"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(address: &str, kind: io::ErrorKind, owner: Option<&Owner>, origin: Origin) -> String {
        let address = match address.split_once(':') {
            Some(("unix", path)) => ListenAddr::Unix(path.into()),
            Some(("fd", name)) => ListenAddr::Inherited(name.into()),
            _ => ListenAddr::Tcp {
                address: address.parse().unwrap(),
                companion: false,
            },
        };
        let place = Place {
            source: "beltway.toml".into(),
            line: u32::from(origin == Origin::Run) * 7,
            column: 11,
        };
        refused(&address, &place, &kind.into(), owner, origin)
    }

    #[test]
    fn an_address_in_use_names_the_process() {
        let owner = Owner {
            pid: 42,
            name: "nginx".into(),
        };
        let in_use = io::ErrorKind::AddrInUse;
        insta::assert_snapshot!(text("127.0.0.1:8080", in_use, Some(&owner), Origin::Serve), @r#"
        error: 127.0.0.1:8080 is in use by nginx (process 42)
          = help: stop it with `kill 42`
          = help: listen elsewhere: -l 127.0.0.1:8081, or -l 127.0.0.1:0 for any free port
        "#);
        insta::assert_snapshot!(text("0.0.0.0:80", in_use, None, Origin::Run), @r#"
        error: 0.0.0.0:80 is in use by another process
         --> beltway.toml:7:11
          = help: find it with `sudo ss -ltnp 'sport = :80'`
          = help: or change the address in the configuration
        "#);
    }

    #[test]
    fn other_refusals_say_what_to_do() {
        let denied = io::ErrorKind::PermissionDenied;
        assert!(text("0.0.0.0:80", denied, None, Origin::Run).contains("setcap"));
        assert!(!text("0.0.0.0:8080", denied, None, Origin::Run).contains("setcap"));
        let missing = io::ErrorKind::AddrNotAvailable;
        assert!(text("10.9.8.7:80", missing, None, Origin::Run).contains("ip address"));
        let directory = io::ErrorKind::NotFound;
        assert!(text("unix:/no/a", directory, None, Origin::Run).contains("directory"));
        let unit = text("fd:web", directory, None, Origin::Run);
        assert!(unit.contains("FileDescriptorName=web"), "{unit}");
    }
}
