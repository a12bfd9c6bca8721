//! Connecting on both engines to real sockets, and in the simulator to everything that real ones do
//! only now and then.

use std::cell::{Cell, RefCell};
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::rc::Rc;

use super::*;
use crate::net::testing::{on_each_engine, run, simulate, spawn_mortal};
use crate::runtime::engine::sim::{Act, Answer, Faults};

const TIMEOUT: Duration = Duration::from_secs(5);

/// What comes of a connect on a core of real sockets.
fn connected(core: &Core, to: &Address, from: Option<IpAddr>) -> Result<Fd, ConnectError> {
    let told = Rc::new(RefCell::new(None));
    let (inner, to, tell) = (core.clone(), to.clone(), Rc::clone(&told));
    core.spawn(async move {
        *tell.borrow_mut() = Some(connect_from(&inner, &to, from, TIMEOUT).await);
    });
    run(core);
    told.take().expect("the task has ended")
}

#[test]
fn connects_by_ipv4_and_ipv6_without_delay() {
    on_each_engine(|core| {
        for local in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(local) else {
                crate::runtime::skipped(format_args!("no {local}"));
                continue;
            };
            let address = Address::Tcp(listener.local_addr().unwrap());
            let socket = connected(core, &address, None).unwrap();
            let os = socket.os().unwrap();
            assert!(rustix::net::sockopt::tcp_nodelay(os).unwrap());
            let (mut peer, _) = listener.accept().unwrap();
            assert_eq!(core.send_now(&socket, b"hello", false), Ok(5));
            let mut bytes = [0; 5];
            peer.read_exact(&mut bytes).unwrap();
            assert_eq!(&bytes, b"hello");
        }
    });
}

#[test]
fn connects_from_the_local_address_that_is_asked_for() {
    on_each_engine(|core| {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = Address::Tcp(listener.local_addr().unwrap());
        let from = IpAddr::from([127, 0, 0, 9]);
        let _socket = connected(core, &address, Some(from)).unwrap();
        assert_eq!(listener.accept().unwrap().1.ip(), from);
        let foreign = IpAddr::from([192, 0, 2, 1]);
        let refused = connected(core, &address, Some(foreign)).unwrap_err();
        assert_eq!(refused, ConnectError::ForeignSource(foreign));
        assert_eq!(refused.fault(), Fault::Ours);
    });
}

#[test]
fn says_that_nobody_listens() {
    on_each_engine(|core| {
        // Bound but not listening: nobody else can get the port meanwhile.
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
        let socket = socket.unwrap();
        let local: SocketAddr = (Ipv4Addr::LOCALHOST, 0).into();
        socket.bind(&local.into()).unwrap();
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        let refused = connected(core, &Address::Tcp(address), None).unwrap_err();
        assert_eq!(refused, ConnectError::Refused);
        assert_eq!(refused.fault(), Fault::Peer);
    });
}

#[test]
fn connects_to_unix_sockets_and_names_what_is_wrong() {
    on_each_engine(|core| {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("app.sock");
        let address = Address::from(path.as_path());
        let of = || connected(core, &address, None);
        assert_eq!(of().unwrap_err(), ConnectError::NoSuchPath);
        let listener = UnixListener::bind(&path).unwrap();
        let socket = of().unwrap();
        let (mut peer, _) = listener.accept().unwrap();
        peer.write_all(b"x").unwrap();
        drop(socket);
        drop(listener);
        assert_eq!(of().unwrap_err(), ConnectError::Refused);
        let long = Address::from(Path::new(&"x".repeat(200)));
        let bad = connected(core, &long, None).unwrap_err();
        assert_eq!(bad, ConnectError::BadAddress(Errno::NAMETOOLONG));
    });
}

/// A unix listener whose backlog is full, and those who fill it.
fn full(path: &Path) -> (socket2::Socket, Vec<socket2::Socket>) {
    let address = socket2::SockAddr::unix(path).unwrap();
    let kind = socket2::Type::STREAM.nonblocking();
    let make = || socket2::Socket::new(socket2::Domain::UNIX, kind, None).unwrap();
    let listener = make();
    listener.bind(&address).unwrap();
    listener.listen(1).unwrap();
    let mut waiting = Vec::new();
    loop {
        let client = make();
        if client.connect(&address).is_err() {
            return (listener, waiting);
        }
        waiting.push(client);
    }
}

#[test]
fn waits_for_room_in_the_backlog_of_a_unix_socket_but_not_for_ever() {
    on_each_engine(|core| {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("app.sock");
        let (listener, _waiting) = full(&path);
        let result = Rc::new(Cell::new(None));
        let (inner, tell) = (core.clone(), Rc::clone(&result));
        let address = Address::from(path.as_path());
        core.spawn(async move {
            let short = Duration::from_millis(20);
            let full = connect(&inner, &address, short).await.unwrap_err();
            assert_eq!(full, ConnectError::BacklogFull);
            let accepted = listener.accept().unwrap();
            let socket = connect(&inner, &address, TIMEOUT).await.unwrap();
            tell.set(Some((accepted, socket)));
        });
        run(core);
        assert!(result.take().is_some());
    });
}

/// A TCP listener whose backlog is full: what is sent to it is dropped.
fn deaf() -> (socket2::Socket, Address, Vec<socket2::Socket>) {
    let make = || {
        let kind = socket2::Type::STREAM.nonblocking();
        socket2::Socket::new(socket2::Domain::IPV4, kind, None).unwrap()
    };
    let listener = make();
    let local: SocketAddr = (Ipv4Addr::LOCALHOST, 0).into();
    listener.bind(&local.into()).unwrap();
    listener.listen(0).unwrap();
    let address = listener.local_addr().unwrap();
    let fill = (0..8).map(|_| {
        let client = make();
        let _ = client.connect(&address);
        client
    });
    let filling = fill.collect();
    let address = Address::Tcp(address.as_socket().unwrap());
    (listener, address, filling)
}

#[test]
fn a_connect_without_an_answer_ends_with_the_timeout_and_leaves_nothing() {
    on_each_engine(|core| {
        let (_listener, address, _filling) = deaf();
        let (inner, begun) = (core.clone(), core.now());
        core.spawn(async move {
            let timeout = Duration::from_millis(50);
            let ended = connect(&inner, &address, timeout).await.unwrap_err();
            assert_eq!(ended, ConnectError::TimedOut);
            assert!(inner.now() - begun >= timeout);
        });
        run(core);
    });
}

#[test]
fn a_connect_in_flight_may_be_dropped() {
    on_each_engine(|core| {
        let (_listener, address, _filling) = deaf();
        let inner = core.clone();
        let task = core.spawn(async move {
            let _ = connect(&inner, &address, TIMEOUT).await;
            unreachable!("it is dropped before");
        });
        core.turn(Some(Duration::ZERO)).unwrap();
        assert!(core.abort(task));
    });
}

#[test]
fn every_simulated_answer_has_its_error() {
    let to = Address::Tcp("192.0.2.7:80".parse().unwrap());
    let unix = Address::from(Path::new("/run/app.sock"));
    for (answer, to, expected) in [
        (Answer::Refuses, &to, Err(ConnectError::Refused)),
        (
            Answer::Unreachable,
            &to,
            Err(ConnectError::Unreachable(Errno::HOSTUNREACH)),
        ),
        (Answer::Silent, &to, Err(ConnectError::TimedOut)),
        (Answer::Full, &unix, Err(ConnectError::BacklogFull)),
        (Answer::HalfOpen, &to, Ok(())),
        (Answer::Accepts, &unix, Ok(())),
    ] {
        let address = to.clone();
        simulate(1, Faults::default(), async move |core, world| {
            world.backend(&address, answer, |_| {
                vec![(Duration::ZERO, Act::Send(b"hello".to_vec()))]
            });
            let begun = core.now();
            let result = connect(&core, &address, TIMEOUT).await;
            assert_eq!(result.as_ref().map(|_| ()).map_err(|e| *e), expected);
            let waited = matches!(answer, Answer::Silent | Answer::Full);
            assert_eq!(core.now() - begun >= TIMEOUT / 2, waited, "{answer:?}");
        });
    }
}

#[test]
fn a_simulated_connect_leaves_nothing_wherever_it_is_dropped() {
    let mut deaths = 0;
    for seed in 0..200 {
        for polls in 1.. {
            let died = Rc::new(Cell::new(false));
            let told = Rc::clone(&died);
            simulate(seed, Faults::seeded(seed), async move |core, world| {
                let to = Address::Tcp("192.0.2.7:80".parse().unwrap());
                world.backend(&to, Answer::Accepts, |_| Vec::new());
                let inner = core.clone();
                let work = async move {
                    if let Ok(socket) = connect(&inner, &to, TIMEOUT).await {
                        inner.yield_turn().await;
                        drop(socket);
                    }
                };
                spawn_mortal(&core, polls, told, work);
            });
            if !died.get() {
                break;
            }
            deaths += 1;
        }
    }
    assert!(deaths > 200, "{deaths}");
}
