//! Which process listens on an address: so that "address in use" can name it.
//!
//! It reads `/proc/net/tcp` and `/proc/net/tcp6` (proc_pid_net(5)) for the inode of the listening
//! socket, and the descriptors of all processes for who holds it. Without privileges only processes
//! of the same user are found. Used at start-up only.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// State of a listening socket in `/proc/net/tcp` (`TCP_LISTEN`).
const LISTEN: &str = "0A";

/// A process that listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Its process id.
    pub pid: u32,
    /// The name of its program, at most 15 bytes (`/proc/PID/comm`).
    pub name: String,
}

/// The process whose listening socket excludes this address: the same one, or one of the two on all
/// addresses. `None` when it can't be found, which may only mean that it is another user's.
pub fn listener_owner(address: SocketAddr) -> Option<Owner> {
    let inodes: Vec<u64> = ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|table| fs::read_to_string(table).ok())
        .flat_map(|table| table.lines().filter_map(listening).collect::<Vec<_>>())
        .filter(|(other, _)| excludes(*other, address))
        .map(|(_, inode)| inode)
        .collect();
    if inodes.is_empty() {
        return None;
    }
    let links: Vec<String> = inodes.iter().map(|i| format!("socket:[{i}]")).collect();
    let processes = fs::read_dir("/proc").ok()?;
    processes.filter_map(Result::ok).find_map(|process| {
        let pid: u32 = process.file_name().to_str()?.parse().ok()?;
        let mut descriptors = fs::read_dir(process.path().join("fd")).ok()?;
        let holds = descriptors.any(|descriptor| {
            descriptor
                .and_then(|descriptor| fs::read_link(descriptor.path()))
                .is_ok_and(|link| links.iter().any(|known| link.as_os_str() == known.as_str()))
        });
        let name = fs::read_to_string(process.path().join("comm")).ok()?;
        holds.then(|| Owner {
            pid,
            name: name.trim_end().to_owned(),
        })
    })
}

/// Address and inode of a line of `/proc/net/tcp` or `tcp6`, if it is a listening socket.
fn listening(line: &str) -> Option<(SocketAddr, u64)> {
    let mut fields = line.split_ascii_whitespace();
    let local = fields.nth(1)?;
    let state = fields.nth(1)?;
    let inode = fields.nth(5)?.parse().ok()?;
    (state == LISTEN).then_some(())?;
    let (ip, port) = local.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    Some((SocketAddr::new(address(ip)?, port), inode))
}

/// An address as the kernel writes it: words of 32 bits, each in the byte order of the machine.
fn address(hex: &str) -> Option<IpAddr> {
    let word = |index: usize| {
        let word = hex.get(index * 8..index * 8 + 8)?;
        Some(u32::from_str_radix(word, 16).ok()?.to_ne_bytes())
    };
    match hex.len() {
        8 => Some(Ipv4Addr::from(word(0)?).into()),
        32 => {
            let mut bytes = [0; 16];
            for (index, chunk) in bytes.chunks_exact_mut(4).enumerate() {
                chunk.copy_from_slice(&word(index)?);
            }
            Some(Ipv6Addr::from(bytes).into())
        }
        _ => None,
    }
}

/// Whether a listening socket keeps another from listening on `wanted`. A socket on `[::]` may serve
/// IPv4 too.
fn excludes(listening: SocketAddr, wanted: SocketAddr) -> bool {
    let (a, b) = (listening.ip(), wanted.ip());
    listening.port() == wanted.port()
        && (a.to_canonical() == b.to_canonical()
            || (a.is_unspecified() && (a.is_ipv6() || b.is_ipv4()))
            || (b.is_unspecified() && a.is_ipv4() == b.is_ipv4()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn finds_this_process_by_the_address_and_by_all_addresses() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let any = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port());
        for wanted in [address, any] {
            let owner = listener_owner(wanted).expect("this process listens");
            assert_eq!(owner.pid, std::process::id());
            assert!(!owner.name.is_empty());
        }
    }

    #[test]
    fn nobody_listens_on_a_port_that_was_given_back() {
        // Bound but not listening: nobody else can get the port meanwhile.
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
        let socket = socket.unwrap();
        let free: SocketAddr = "127.0.0.1:0".parse().unwrap();
        socket.bind(&free.into()).unwrap();
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        assert_eq!(listener_owner(address), None);
    }

    #[test]
    fn reads_the_lines_of_the_kernel() {
        let line = "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  \
                    1000        0 4242 1 0000000000000000 100 0 0 10 0";
        if cfg!(target_endian = "little") {
            assert_eq!(
                listening(line),
                Some(("127.0.0.1:8080".parse().unwrap(), 4242))
            );
        }
        assert_eq!(listening(&line.replace(" 0A ", " 01 ")), None);
        for line in ["", "sl local_address rem_address st", "0: zz:1 0:0 0A"] {
            assert_eq!(listening(line), None);
        }
    }

    #[test]
    fn which_addresses_exclude_each_other() {
        for (a, b, expected) in [
            ("127.0.0.1:80", "127.0.0.1:80", true),
            ("127.0.0.1:80", "127.0.0.1:81", false),
            ("127.0.0.1:80", "127.0.0.2:80", false),
            ("0.0.0.0:80", "127.0.0.1:80", true),
            ("127.0.0.1:80", "0.0.0.0:80", true),
            ("[::]:80", "127.0.0.1:80", true),
            ("[::1]:80", "0.0.0.0:80", false),
            ("0.0.0.0:80", "[::1]:80", false),
        ] {
            let read = |text: &str| text.parse::<SocketAddr>().unwrap();
            assert_eq!(excludes(read(a), read(b)), expected, "{a} {b}");
        }
    }
}
