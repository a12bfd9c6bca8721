//! The listening sockets that the master holds for its whole life, so that neither a respawn nor a
//! reload nor an upgrade ever refuses a connection.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;

use crate::config::model::{ListenAddr, Place};
use crate::net::socket::SocketFile;
use crate::supervisor::bind::{self, BoundAddr, ListenError, Part};
use crate::supervisor::listen_fds::{self, Inherited, Source};
use crate::supervisor::messages::SocketId;

/// One socket.
#[derive(Debug)]
pub(super) struct Held {
    /// Its number, never given again.
    pub(super) id: SocketId,
    /// What the configuration calls it. A reload that names the same keeps the socket, also where the
    /// kernel chose the port.
    pub(super) key: ListenAddr,
    /// Where it listens.
    pub(super) address: BoundAddr,
    /// The socket.
    pub(super) socket: OwnedFd,
    /// The file of a unix socket, removed with it.
    pub(super) file: Option<SocketFile>,
    /// The service manager made it, and would not make it again: it is never closed.
    pub(super) inherited: bool,
    /// It is an IPv6 socket that takes IPv4 connections, too.
    pub(super) dual_stack: bool,
    /// Which one it is, where the address has several.
    pub(super) part: Option<Part>,
}

impl Held {
    /// Whether it is the socket of this address: by the name under which it was bound, or, when the
    /// service manager made it, by where it listens.
    fn serves(&self, address: &ListenAddr) -> bool {
        self.key == *address
            || self.inherited
                && match (address, &self.address) {
                    (ListenAddr::Tcp { address, .. }, BoundAddr::Tcp(bound)) => address == bound,
                    (ListenAddr::Unix(path), BoundAddr::Unix(bound)) => path == bound,
                    _ => false,
                }
    }
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Sockets {
    held: Vec<Held>,
    next: SocketId,
    /// From the service manager, and not asked for yet.
    spare: Vec<Inherited>,
}

impl Sockets {
    /// No sockets but those that the service manager has handed over.
    pub(super) fn new(inherited: Vec<Inherited>) -> Self {
        Self {
            spare: inherited,
            ..Self::default()
        }
    }

    /// Takes over the sockets of the master that was here before.
    pub(super) fn resume(held: Vec<Held>, next: SocketId, spare: Vec<Inherited>) -> Self {
        Self { held, next, spare }
    }

    /// Everything, for the master that comes after.
    pub(super) fn parts(&self) -> (&[Held], SocketId, &[Inherited]) {
        (&self.held, self.next, &self.spare)
    }

    /// The socket of this number.
    pub(super) fn get(&self, id: SocketId) -> Option<&Held> {
        self.held.iter().find(|held| held.id == id)
    }

    /// Names of sockets from the service manager that no configuration has asked for.
    pub(super) fn unused(&self) -> impl Iterator<Item = String> {
        let spare = self.spare.iter();
        spare.map(|spare| format!("{} ({})", spare.address, spare.name))
    }

    /// The sockets for these listeners, each with the listener's place in the list: held already, from
    /// the service manager, or bound now, `parts` for an address where that is more than one shared by
    /// all cores. How many an address has stays as it was bound.
    ///
    /// # Errors
    /// Every address that can't be had. What was bound for the others is closed again.
    pub(super) fn bind(
        &mut self,
        wanted: &[(ListenAddr, Place)],
        parts: Option<usize>,
    ) -> Result<Vec<(SocketId, usize)>, Vec<ListenError>> {
        self.claim(wanted);
        let bound = bind::bind_missing(wanted, parts, |address| {
            self.holds(address) || self.covers(address)
        })?;
        for socket in bound {
            self.add(Held {
                id: 0,
                key: wanted[socket.listener].0.clone(),
                address: socket.address,
                socket: socket.socket,
                file: socket.file,
                inherited: false,
                dual_stack: false,
                part: socket.part,
            });
        }
        let of = |(index, (address, _)): (usize, &(ListenAddr, Place))| {
            let held = self.held.iter().filter(|held| held.serves(address));
            held.map(|held| (held.id, index)).collect::<Vec<_>>()
        };
        Ok(wanted.iter().enumerate().flat_map(of).collect())
    }

    /// Addresses that have another number of sockets than this, and that could have had it.
    pub(super) fn otherwise(&self, parts: Option<usize>) -> impl Iterator<Item = &BoundAddr> {
        let held = self.held.iter().filter(move |held| {
            let is_tcp = matches!(held.address, BoundAddr::Tcp(_)) && !held.inherited;
            let first = held.part.is_none_or(|part| part.index == 0);
            is_tcp && first && held.part.map(|part| part.of) != parts
        });
        held.map(|held| &held.address)
    }

    /// Closes every socket that isn't in use any more, and gives their addresses.
    pub(super) fn retain(&mut self, used: &BTreeSet<SocketId>) -> Vec<BoundAddr> {
        let gone = |held: &mut Held| !held.inherited && !used.contains(&held.id);
        let gone: Vec<Held> = self.held.extract_if(.., gone).collect();
        let firsts = gone
            .into_iter()
            .filter(|held| held.part.is_none_or(|it| it.index == 0));
        firsts.map(|held| held.address).collect()
    }

    /// Closes all, for the end.
    pub(super) fn close(&mut self) {
        self.held.clear();
        self.spare.clear();
    }

    fn holds(&self, address: &ListenAddr) -> bool {
        self.held.iter().any(|held| held.serves(address))
    }

    /// Whether a socket of the service manager takes the connections to this IPv4 address, too. None can
    /// be bound beside it, and none is needed.
    fn covers(&self, address: &ListenAddr) -> bool {
        let ListenAddr::Tcp { address, .. } = address else {
            return false;
        };
        let covers = |held: &Held| match held.address {
            BoundAddr::Tcp(bound) => bound.ip().is_unspecified() && bound.port() == address.port(),
            BoundAddr::Unix(_) => false,
        };
        address.is_ipv4() && self.held.iter().any(|held| held.dual_stack && covers(held))
    }

    /// Takes the sockets of the service manager that these addresses mean.
    fn claim(&mut self, wanted: &[(ListenAddr, Place)]) {
        let names: Vec<String> = wanted
            .iter()
            .map(|(address, _)| address.to_string())
            .collect();
        let sources = listen_fds::place(&names, &self.spare).listeners;
        let mut spare: Vec<Option<Inherited>> = self.spare.drain(..).map(Some).collect();
        for ((address, _), source) in wanted.iter().zip(sources) {
            let Source::Inherited(places) = source else {
                continue;
            };
            for socket in places.into_iter().filter_map(|place| spare[place].take()) {
                self.add(Held {
                    id: 0,
                    key: address.clone(),
                    address: socket.address,
                    socket: socket.socket,
                    // The file of a unix socket is the service manager's.
                    file: None,
                    inherited: true,
                    dual_stack: socket.dual_stack,
                    part: None,
                });
            }
        }
        self.spare = spare.into_iter().flatten().collect();
    }

    /// Keeps a socket under the next number.
    fn add(&mut self, held: Held) {
        self.held.push(Held {
            id: self.next,
            ..held
        });
        self.next += 1;
    }
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, TcpListener, TcpStream};

    use super::*;

    fn tcp(address: &str) -> (ListenAddr, Place) {
        let address = ListenAddr::Tcp {
            address: address.parse().unwrap(),
            companion: false,
        };
        (address, Place::default())
    }

    fn address(sockets: &Sockets, id: SocketId) -> SocketAddr {
        match sockets.get(id).unwrap().address {
            BoundAddr::Tcp(address) => address,
            BoundAddr::Unix(_) => panic!("it is TCP"),
        }
    }

    #[test]
    fn the_same_name_keeps_its_socket_and_its_port() {
        let mut sockets = Sockets::default();
        let first = sockets.bind(&[tcp("127.0.0.1:0")], None).unwrap();
        let port = address(&sockets, first[0].0);
        let wanted = [tcp("127.0.0.2:0"), tcp("127.0.0.1:0")];
        let second = sockets.bind(&wanted, None).unwrap();
        assert_eq!(second.len(), 2);
        assert_eq!(second[1], (first[0].0, 1));
        assert_eq!(address(&sockets, second[1].0), port);

        let kept = BTreeSet::from([second[0].0]);
        assert_eq!(sockets.retain(&kept), [BoundAddr::Tcp(port)]);
        assert!(TcpStream::connect(port).is_err());
        TcpStream::connect(address(&sockets, second[0].0)).unwrap();
        let third = sockets.bind(&[tcp("127.0.0.1:0")], None).unwrap();
        assert!(third[0].0 > second[0].0, "no number is given twice");
    }

    #[test]
    fn an_address_has_as_many_sockets_as_it_was_bound_with() {
        let mut sockets = Sockets::default();
        let wanted = [tcp("127.0.0.1:0")];
        let first = sockets.bind(&wanted, Some(2)).unwrap();
        assert_eq!(first.len(), 2);
        let parts = first.iter().map(|(id, _)| sockets.get(*id).unwrap().part);
        let parts: Vec<usize> = parts.map(|part| part.unwrap().index).collect();
        assert_eq!(parts, [0, 1]);
        for again in [Some(4), None, Some(2)] {
            assert_eq!(sockets.bind(&wanted, again).unwrap(), first);
            assert_eq!(
                sockets.otherwise(again).count(),
                usize::from(again != Some(2))
            );
        }
        assert_eq!(
            sockets.retain(&BTreeSet::new()).len(),
            1,
            "it is told of once"
        );
    }

    #[test]
    fn a_failure_leaves_what_is_held_and_nothing_else() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = tcp(&taken.local_addr().unwrap().to_string());
        let mut sockets = Sockets::default();
        sockets.bind(&[tcp("127.0.0.1:0")], None).unwrap();
        let wanted = [tcp("127.0.0.1:0"), tcp("127.0.0.2:0"), taken.clone()];
        let errors = sockets.bind(&wanted, None).unwrap_err();
        assert_eq!(errors.len(), 1);
        assert_eq!(errors[0].address, taken.0);
        assert_eq!(sockets.held.len(), 1);
    }

    #[test]
    fn sockets_of_the_service_manager_are_used_by_name_and_by_address_and_never_closed() {
        let inherited = |name: &str| {
            let socket = TcpListener::bind("127.0.0.1:0").unwrap();
            Inherited {
                name: name.to_owned(),
                address: BoundAddr::Tcp(socket.local_addr().unwrap()),
                socket: socket.into(),
                dual_stack: false,
            }
        };
        let all = vec![inherited("web"), inherited("web"), inherited("other")];
        let other = all[2].address.clone();
        let BoundAddr::Tcp(other_address) = other else {
            panic!("it is TCP");
        };
        let mut sockets = Sockets::new(all);
        let named = (ListenAddr::Inherited("web".into()), Place::default());
        let wanted = [named, tcp(&other_address.to_string())];
        let got = sockets.bind(&wanted, None).unwrap();
        assert_eq!(
            got.iter().map(|(_, index)| *index).collect::<Vec<_>>(),
            [0, 0, 1]
        );
        assert_eq!(address(&sockets, got[2].0), other_address);
        assert_eq!(sockets.retain(&BTreeSet::new()), []);
        TcpStream::connect(other_address).unwrap();
        // The same socket by its address, where it was known by its name.
        let web = address(&sockets, got[0].0);
        let again = sockets.bind(&[tcp(&web.to_string())], None).unwrap();
        assert_eq!(again, [(got[0].0, 0)]);
        let missing = (ListenAddr::Inherited("none".into()), Place::default());
        assert_eq!(sockets.bind(&[missing], None).unwrap_err().len(), 1);
    }
}
