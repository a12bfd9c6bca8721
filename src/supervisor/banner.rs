//! What `serve` tells the person at the terminal.

use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use super::bind::BoundAddr;
use crate::config::model::{Action, LogTarget, Model};

/// Where friendly lines go: standard output, unless the access log goes there, which programs read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stream {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

impl Stream {
    /// The stream for this configuration.
    pub(super) fn of(model: &Model) -> Self {
        match &model.server.access_log {
            Some(log) if log.target == LogTarget::Stdout => Self::Err,
            _ => Self::Out,
        }
    }

    /// Writes a text. That nobody reads it is no error of ours.
    pub(super) fn say(self, text: &str) {
        let write = |out: &mut dyn Write| out.write_all(text.as_bytes()).and_then(|()| out.flush());
        let _ = match self {
            Self::Out => write(&mut io::stdout().lock()),
            Self::Err => write(&mut io::stderr().lock()),
        };
    }
}

/// The lines at the start: what is served, where, and on what.
pub(super) fn started(
    model: &Model,
    addresses: &[(BoundAddr, bool)],
    engine: &str,
    cores: usize,
) -> String {
    let roots: Vec<String> = model
        .sites
        .iter()
        .filter_map(|site| match &site.fallback.action {
            Action::Files(files) => Some(files.root.display().to_string()),
            _ => None,
        })
        .collect();
    let what = match roots.as_slice() {
        [] => String::new(),
        roots => format!(" serves {}", roots.join(", ")),
    };
    let urls: String = addresses
        .iter()
        .map(|(at, is_secured)| format!("  {}\n", url(at, *is_secured)))
        .collect();
    let cores = match cores {
        1 => "1 core".to_owned(),
        cores => format!("{cores} cores"),
    };
    format!("Beltway{what}\n\n{urls}\n  engine: {engine}, {cores}; Ctrl-C stops it\n\n")
}

/// The line after the first Ctrl-C.
pub(super) fn stopping(drain: Duration) -> String {
    let seconds = drain.as_secs_f64();
    format!(
        "\nStopping: open requests may finish (at most {seconds} s); Ctrl-C again ends them at once\n"
    )
}

/// An address that can be clicked. Nobody can connect to `0.0.0.0`, so it is shown as loopback.
fn url(address: &BoundAddr, is_secured: bool) -> String {
    let whole = address.url(is_secured);
    let BoundAddr::Tcp(address) = address else {
        return whole;
    };
    let loopback: IpAddr = match address.ip() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv6Addr::LOCALHOST.into(),
        _ => return format!("{whole}/"),
    };
    let mut shown = *address;
    shown.set_ip(loopback);
    let shown = BoundAddr::Tcp(shown).url(is_secured);
    format!("{shown}/ (and on every other address of this machine)")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(address: &str) -> BoundAddr {
        BoundAddr::Tcp(address.parse().unwrap())
    }

    #[test]
    fn every_url_can_be_opened() {
        let url = |address: &str, is_secured| super::url(&tcp(address), is_secured);
        assert_eq!(url("127.0.0.1:80", false), "http://127.0.0.1:80/");
        assert_eq!(url("127.0.0.1:443", true), "https://127.0.0.1:443/");
        assert_eq!(url("[2001:db8::1]:80", false), "http://[2001:db8::1]:80/");
        assert!(url("0.0.0.0:80", false).starts_with("http://127.0.0.1:80/ (and"));
        assert!(url("[::]:80", true).starts_with("https://[::1]:80/ (and"));
        assert_eq!(super::url(&BoundAddr::Unix("/a".into()), true), "unix:/a");
    }

    #[test]
    fn the_drain_time_is_said_in_seconds() {
        assert!(stopping(Duration::from_millis(2500)).contains("at most 2.5 s"));
        assert!(stopping(Duration::from_secs(30)).contains("at most 30 s"));
    }
}
