//! What every engine must do alike, on real sockets and files.

use std::cell::{Cell, RefCell};
use std::ffi::CString;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{OFlags, ResolveFlags};
use rustix::io::Errno;

use super::caps::{EngineChoice, EngineKind, Restriction, Selection};
use crate::runtime;
use crate::runtime::buf::BUFFER_SIZE;
use crate::runtime::executor::{Core, Usage};
use crate::runtime::future::Timer;
use crate::runtime::mailbox::Wake;
use crate::runtime::offload::Helpers;
use crate::runtime::op::{Interest, Op, OpenRequest, Output};
use crate::runtime::scope::Scope;

/// How long the tasks of a test may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Runs the test on a core of each engine, and checks that nothing is left behind.
fn on_each_engine(test: impl Fn(&Core)) {
    let helpers = Helpers::start(2, 16).unwrap();
    runtime::on_each_engine(Some(&helpers), PATIENCE, test);
}

/// Turns until all tasks are done.
fn run(core: &Core) {
    runtime::run(core, PATIENCE);
}

fn listener(core: &Core) -> (crate::runtime::fd::Fd, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    (core.own(OwnedFd::from(listener)), address)
}

async fn accept_one(core: &Core, listener: crate::runtime::fd::Fd) -> crate::runtime::fd::Fd {
    let scope = Scope::new(core);
    let mut accepts = scope.many(Op::Accept {
        listener,
        one: false,
    });
    let Output::Socket(socket) = accepts.next().await.output else {
        panic!("no connection")
    };
    scope.cancel().await;
    socket
}

#[test]
fn an_accept_of_one_takes_no_other() {
    on_each_engine(|core| {
        let (listener, address) = listener(core);
        let clients = [(); 3].map(|()| TcpStream::connect(address).unwrap());
        let mut ports = clients.each_ref().map(|c| c.local_addr().unwrap().port());
        let inner = core.clone();
        core.spawn(async move {
            let mut accepted = Vec::new();
            for _ in 0..3 {
                let scope = Scope::new(&inner);
                let mut accepts = scope.many(Op::Accept {
                    listener: listener.clone(),
                    one: true,
                });
                let first = accepts.next().await;
                let Output::Socket(socket) = first.output else {
                    panic!("no connection")
                };
                assert!(!first.more && accepts.ended());
                let peer = SocketAddr::try_from(inner.peer_address(&socket).unwrap()).unwrap();
                accepted.push((peer.port(), socket));
            }
            let mut accepted: Vec<u16> = accepted.iter().map(|(port, _)| *port).collect();
            accepted.sort_unstable();
            ports.sort_unstable();
            assert_eq!(accepted, ports);
        });
        run(core);
        drop(clients);
    });
}

#[test]
fn echoes_until_the_client_ends() {
    on_each_engine(|core| {
        let (listener, address) = listener(core);
        let client = thread::spawn(move || {
            let mut stream = TcpStream::connect(address).unwrap();
            let (mut sent, mut received) = (Vec::new(), Vec::new());
            for size in [1, 4096, 100_000, 5] {
                let block: Vec<u8> = (0..size).map(|n| (n % 251) as u8).collect();
                stream.write_all(&block).unwrap();
                sent.extend_from_slice(&block);
            }
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            stream.read_to_end(&mut received).unwrap();
            assert!(
                sent == received,
                "{} bytes became {}",
                sent.len(),
                received.len()
            );
        });
        let inner = core.clone();
        core.spawn(async move {
            let socket = accept_one(&inner, listener).await;
            let mut receives = inner.many(Op::Recv {
                socket: socket.clone(),
                one: false,
            });
            loop {
                let received = receives.next().await;
                match (received.result, received.output) {
                    (Ok(_), Output::Received(bytes)) => {
                        let (mut data, mut from) = (bytes.to_vec(), 0);
                        while from < data.len() {
                            let op = Op::Send {
                                socket: socket.clone(),
                                data,
                                from,
                                more: false,
                            };
                            let sent = inner.once(op).await;
                            let Output::Data(back) = sent.output else {
                                panic!("buffer lost")
                            };
                            data = back;
                            from += sent.result.unwrap() as usize;
                        }
                    }
                    (Ok(0), _) => break,
                    // More than the bound waited: begin again.
                    (Err(Errno::CANCELED), _) if !received.more => {
                        receives = inner.many(Op::Recv {
                            socket: socket.clone(),
                            one: false,
                        });
                    }
                    (result, _) => panic!("{result:?}"),
                }
            }
        });
        run(core);
        client.join().unwrap();
    });
}

#[test]
fn a_receive_of_one_leaves_the_rest_in_the_socket() {
    on_each_engine(|core| {
        let (listener, address) = listener(core);
        let sent: Vec<u8> = (0..5 * BUFFER_SIZE).map(|at| (at % 251) as u8).collect();
        let mut client = TcpStream::connect(address).unwrap();
        client.write_all(&sent).unwrap();
        let inner = core.clone();
        core.spawn(async move {
            let _keep = client;
            let socket = accept_one(&inner, listener).await;
            let mut came = Vec::new();
            for _ in 0..2 {
                let one = Op::Recv {
                    socket: socket.clone(),
                    one: true,
                };
                let mut receives = inner.many(one);
                let received = receives.next().await;
                let Output::Received(bytes) = received.output else {
                    panic!("{:?}", received.result)
                };
                assert!(!received.more && receives.ended() && bytes.len() <= BUFFER_SIZE);
                came.extend_from_slice(&bytes);
                inner.yield_turn().await;
                // Nobody but us takes what follows.
                let mut next = vec![0; 100];
                let took = inner.receive_now(&socket, &mut next).unwrap();
                came.extend_from_slice(&next[..took]);
            }
            assert!(came.len() <= 2 * BUFFER_SIZE + 200 && came == sent[..came.len()]);
        });
    });
}

#[test]
fn who_waits_for_the_quota_of_bulk_sends_comes_before_whom_events_wake() {
    on_each_engine(|core| {
        let order = Rc::new(RefCell::new(Vec::new()));
        let (mut there, here) = UnixStream::pair().unwrap();
        there.write_all(b"readable").unwrap();
        let (inner, of_event) = (core.clone(), Rc::clone(&order));
        core.spawn(async move {
            let fd = inner.own(here.into());
            let interest = Interest::Readable;
            inner.once(Op::Ready { fd, interest }).await;
            of_event.borrow_mut().push("event");
        });
        let (inner, of_quota) = (core.clone(), Rc::clone(&order));
        core.spawn(async move {
            inner.bulk_sent(inner.bulk_left());
            inner.yield_for_bulk().await;
            assert!(inner.bulk_left() > 0);
            of_quota.borrow_mut().push("quota");
        });
        run(core);
        assert_eq!(*order.borrow(), ["quota", "event"]);
    });
}

#[test]
fn a_dropped_receive_is_cancelled_and_its_bytes_are_reaped() {
    on_each_engine(|core| {
        let (listener, address) = listener(core);
        let mut client = TcpStream::connect(address).unwrap();
        client.write_all(b"never read").unwrap();
        let inner = core.clone();
        core.spawn(async move {
            let socket = accept_one(&inner, listener).await;
            let receives = inner.many(Op::Recv { socket, one: false });
            inner.yield_turn().await;
            drop(receives);
        });
        run(core);
        let deadline = Instant::now() + Duration::from_secs(10);
        while core.usage() != Usage::default() {
            assert!(Instant::now() < deadline, "{:?}", core.usage());
            core.turn(Some(Duration::from_millis(10))).unwrap();
        }
        // The socket is closed with the last reference, in the next turn: the client sees its end.
        core.turn(Some(Duration::ZERO)).unwrap();
        let mut rest = Vec::new();
        let _ = client.read_to_end(&mut rest);
        assert!(rest.is_empty());
    });
}

#[test]
fn an_accepted_connection_that_nobody_took_is_closed() {
    on_each_engine(|core| {
        let (listener, address) = listener(core);
        let inner = core.clone();
        let accepting = Rc::new(Cell::new(false));
        let told = Rc::clone(&accepting);
        core.spawn(async move {
            let accepts = inner.many(Op::Accept {
                listener,
                one: false,
            });
            told.set(true);
            inner.yield_turn().await;
            inner.yield_turn().await;
            drop(accepts);
        });
        core.turn(Some(Duration::ZERO)).unwrap();
        assert!(accepting.get());
        let mut client = TcpStream::connect(address).unwrap();
        run(core);
        assert!(core.shut_down());
        client
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        let end = client.read(&mut [0; 8]);
        assert!(!matches!(&end, Err(error) if error.kind() == std::io::ErrorKind::WouldBlock));
    });
}

#[test]
fn a_task_ends_another_but_never_itself() {
    on_each_engine(|core| {
        let (listener, _) = listener(core);
        let ended = Rc::new(Cell::new(None));
        let (inner, held) = (core.clone(), Rc::clone(&ended));
        let accepting = core.spawn(async move {
            let _held = held;
            accept_one(&inner, listener).await;
            unreachable!("it is ended before anybody connects");
        });
        let (inner, result) = (core.clone(), Rc::clone(&ended));
        core.spawn(async move {
            inner.yield_turn().await;
            let held = Rc::strong_count(&result);
            let first = inner.abort(accepting);
            let let_go = held - Rc::strong_count(&result);
            let own = inner.abort(inner.current_task());
            // A completion that is still to come, and a wake, find nobody.
            inner.wake_task(accepting);
            inner.yield_turn().await;
            result.set(Some((first, let_go, inner.abort(accepting), own)));
        });
        run(core);
        assert_eq!(ended.get(), Some((true, 1, false, false)));
    });
}

#[test]
fn a_scope_waits_for_the_terminal_completion() {
    on_each_engine(|core| {
        let (listener, address) = listener(core);
        let client = TcpStream::connect(address).unwrap();
        let inner = core.clone();
        core.spawn(async move {
            let _keep = client;
            let socket = accept_one(&inner, listener).await;
            let scope = Scope::new(&inner);
            let mut receives = scope.many(Op::Recv { socket, one: false });
            scope.cancel().await;
            let last = receives.next().await;
            assert_eq!(last.result, Err(Errno::CANCELED));
            assert!(!last.more && receives.ended());
        });
    });
}

#[test]
fn opens_and_reads_files() {
    on_each_engine(|core| {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), b"0123456789").unwrap();
        let dir_fd = core.own(std::fs::File::open(dir.path()).unwrap().into());
        let inner = core.clone();
        core.spawn(async move {
            let _keep = dir;
            let open = |path: &str| {
                inner.once(Op::Open(Box::new(OpenRequest {
                    dir: Some(dir_fd.clone()),
                    path: CString::new(path).unwrap(),
                    flags: OFlags::RDONLY,
                    resolve: ResolveFlags::BENEATH,
                })))
            };
            assert_eq!(open("missing").await.result, Err(Errno::NOENT));
            assert_eq!(open("../escape").await.result, Err(Errno::XDEV));
            let Output::Opened(file) = open("file").await.output else {
                panic!("not opened")
            };
            assert_eq!(inner.stat(&file).unwrap().size, 10);
            let read = |offset, len| {
                inner.once(Op::Read {
                    file: file.clone(),
                    data: Vec::new(),
                    len,
                    offset,
                })
            };
            let middle = read(3, 4).await;
            assert_eq!(middle.result, Ok(4));
            assert!(matches!(middle.output, Output::Data(data) if data == b"3456"));
            let end = read(8, 100).await;
            assert!(matches!(end.output, Output::Data(data) if data == b"89"));
        });
    });
}

#[test]
fn jobs_run_on_helpers_and_a_panicking_job_is_an_error() {
    on_each_engine(|core| {
        let inner = core.clone();
        core.spawn(async move {
            let done = inner.once(Op::Offload(Box::new(|| {
                Box::new(thread::current().name().map(str::to_owned))
            })));
            let Output::Answer(answer) = done.await.output else {
                panic!("no answer")
            };
            let name = answer.downcast::<Option<String>>().unwrap();
            assert!(name.unwrap().starts_with("beltway-help"));
            let failed = inner
                .once(Op::Offload(Box::new(|| panic!("as the test wants"))))
                .await;
            assert_eq!(failed.result, Err(Errno::CANCELED));
        });
    });
}

#[test]
fn timers_fire_in_order_and_never_early() {
    on_each_engine(|core| {
        let fired = Rc::new(RefCell::new(Vec::new()));
        let started = core.now();
        for ms in [30, 5, 18] {
            let (inner, fired) = (core.clone(), Rc::clone(&fired));
            core.spawn(async move {
                let mut timer = Timer::new(&inner);
                timer.set(started + Duration::from_millis(ms));
                timer.expired().await;
                assert!(inner.now() >= started + Duration::from_millis(ms));
                fired.borrow_mut().push(ms);
            });
        }
        run(core);
        assert_eq!(*fired.borrow(), [5, 18, 30]);
    });
}

#[test]
fn a_run_ends_with_its_last_task_although_nothing_else_will_happen() {
    on_each_engine(|core| {
        let inner = core.clone();
        core.spawn(async move { inner.yield_turn().await });
        core.run().unwrap();
    });
}

#[test]
fn a_task_that_panics_takes_nobody_with_it() {
    let selection = Selection::choose(EngineChoice::Epoll).unwrap();
    let core = selection.core(Wake::new().unwrap(), None).unwrap();
    let (listener, address) = listener(&core);
    let mut client = TcpStream::connect(address).unwrap();
    let (first, second) = (core.clone(), core.clone());
    core.spawn(async move {
        let socket = accept_one(&first, listener).await;
        let _receives = first.many(Op::Recv { socket, one: false });
        first.yield_turn().await;
        panic!("as the test wants");
    });
    let survived = Rc::new(Cell::new(false));
    let told = Rc::clone(&survived);
    core.spawn(async move {
        for _ in 0..50 {
            second.yield_turn().await;
        }
        told.set(true);
    });
    run(&core);
    assert!(survived.get());
    assert_eq!(core.panics(), 1);
    assert!(core.shut_down());
    assert_eq!(core.usage(), Usage::default());
    assert!(
        matches!(client.read(&mut [0; 8]), Ok(0) | Err(_)),
        "its connection is closed"
    );
}

#[test]
fn another_thread_wakes_a_core_that_waits() {
    let selection = Selection::choose(EngineChoice::Auto).unwrap();
    let wake = Wake::new().unwrap();
    let core = selection.core(wake.clone(), None).unwrap();
    let inner = core.clone();
    core.spawn(async move { inner.woken(&mut 0).await });
    let other = thread::spawn(move || wake.wake());
    run(&core);
    other.join().unwrap();
}

#[test]
fn more_ops_than_the_submission_queue_holds_are_all_done() {
    on_each_engine(|core| {
        let file = core.own(tempfile::tempfile().unwrap().into());
        let done = Rc::new(Cell::new(0));
        let many = if cfg!(debug_assertions) { 3000 } else { 10_000 };
        for _ in 0..many {
            let (inner, file, done) = (core.clone(), file.clone(), Rc::clone(&done));
            core.spawn(async move {
                let read = Op::Read {
                    file,
                    data: Vec::new(),
                    len: 1,
                    offset: 0,
                };
                assert_eq!(inner.once(read).await.result, Ok(0));
                done.set(done.get() + 1);
            });
        }
        run(core);
        assert_eq!(done.get(), many);
    });
}

#[test]
fn a_job_that_found_the_helpers_busy_with_another_core_runs_when_they_are_free() {
    let helpers = Helpers::start(1, 1).unwrap();
    let (release, gate) = std::sync::mpsc::channel::<()>();
    let (entered, inside) = std::sync::mpsc::channel();
    let mut others = [0; 2].map(|_| helpers.port(Wake::new().unwrap()));
    let hold = Box::new(move || {
        entered.send(()).unwrap();
        let _ = gate.recv();
        Box::new(()) as Box<dyn std::any::Any + Send>
    });
    assert!(others[0].submit(1, hold).is_ok());
    inside.recv().unwrap();
    assert!(others[1].submit(2, Box::new(|| Box::new(()))).is_ok());

    let wake = Wake::new().unwrap();
    let core = Selection::choose(EngineChoice::Epoll)
        .unwrap()
        .core(wake.clone(), Some(helpers.port(wake)))
        .unwrap();
    let answered = Rc::new(Cell::new(None));
    let (inner, told) = (core.clone(), Rc::clone(&answered));
    core.spawn(async move {
        let done = inner.once(Op::Offload(Box::new(|| Box::new(7u8)))).await;
        told.set(Some(matches!(done.output, Output::Answer(_))));
    });
    let (inner, told) = (core.clone(), Rc::clone(&answered));
    core.spawn(async move {
        let mut timer = Timer::new(&inner);
        timer.set(inner.now() + Duration::from_secs(10));
        timer.expired().await;
        told.set(Some(false));
    });
    // The queue is full: the core keeps the job.
    core.turn(Some(Duration::ZERO)).unwrap();
    drop(release);
    // Nothing else happens on this core: it has to ask again by itself.
    core.run_until(|| answered.get().is_some()).unwrap();
    assert_eq!(answered.get(), Some(true), "the job was forgotten");
    assert_eq!(core.panics(), 0);
    assert!(core.shut_down());
}

/// What comes of the forbidden entries on a core of this selection, and how many it counts as refused.
fn try_forbidden(selection: &Selection) -> (Option<Vec<super::Forbidden>>, u64) {
    let core = selection.core(Wake::new().unwrap(), None).unwrap();
    let tried = Rc::new(RefCell::new(None));
    let (inner, told) = (core.clone(), Rc::clone(&tried));
    core.spawn(async move { *told.borrow_mut() = inner.try_forbidden().await });
    run(&core);
    let refused = core.ring_refused();
    assert!(core.shut_down());
    (tried.take(), refused)
}

#[test]
fn a_restricted_ring_refuses_what_the_engine_does_not_use() {
    let selection = Selection::choose(EngineChoice::Auto).unwrap();
    if *selection.restriction() != Restriction::Enforced {
        crate::runtime::skipped(format_args!(
            "rings that are restricted: {:?}",
            selection.restriction()
        ));
        return;
    }
    let (tried, refused) = try_forbidden(&selection);
    let tried = tried.expect("a ring answers");
    assert!(tried.iter().all(super::Forbidden::refused), "{tried:?}");
    let by_ring = tried.iter().filter(|one| one.result == -libc::EACCES);
    assert!(
        refused >= 3 && refused == by_ring.count() as u64,
        "{tried:?}"
    );
}

#[test]
fn a_ring_that_is_not_restricted_makes_sockets_and_keeps_none() {
    let selection = Selection::choose_with(EngineChoice::Auto, false).unwrap();
    if selection.kind() == EngineKind::Epoll {
        crate::runtime::skipped(format_args!(
            "rings that are not restricted: {}",
            selection.reason
        ));
        return;
    }
    assert_eq!(*selection.restriction(), Restriction::Off);
    let (tried, refused) = try_forbidden(&selection);
    let tried = tried.expect("a ring answers");
    let netlink = tried.iter().find(|one| one.what.contains("netlink"));
    assert!(netlink.is_some_and(|one| one.result > 0), "{tried:?}");
    assert_eq!(refused, 0);
}

#[test]
fn without_a_ring_there_is_nothing_to_try() {
    let selection = Selection::choose(EngineChoice::Epoll).unwrap();
    assert_eq!(*selection.restriction(), Restriction::NoRing);
    assert_eq!(try_forbidden(&selection), (None, 0));
}
