//! The simulator itself: the same seed gives the same run, and every broken rule is caught.

use std::cell::{Cell, RefCell};
use std::ffi::CString;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use super::*;
use crate::runtime::future::Timer;
use crate::runtime::op::{Interest, Output};
use crate::runtime::scope::Scope;

const SOON: Duration = Duration::from_micros(50);

/// Runs a task to its end on a machine of this seed, and checks the ledger.
fn run<F: Future<Output = ()> + 'static>(
    seed: u64,
    faults: Faults,
    task: impl FnOnce(Core, World) -> F,
) -> World {
    let (core, world) = new(seed, faults, Config::default());
    core.spawn(task(core.clone(), world.clone()));
    let watched = core.clone();
    world.run_until(100_000, || watched.usage().tasks == 0);
    world.finish();
    world
}

async fn accept_one(core: &Core, listener: Fd) -> Fd {
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

async fn send_all(core: &Core, socket: &Fd, mut data: Vec<u8>) -> Result<(), Errno> {
    let mut from = 0;
    while from < data.len() {
        let socket = socket.clone();
        let more = false;
        let op = Op::Send {
            socket,
            data,
            from,
            more,
        };
        let sent = core.once(op).await;
        let Output::Data(back) = sent.output else {
            panic!("the buffer is lost")
        };
        data = back;
        from += sent.result? as usize;
    }
    Ok(())
}

/// Receives to the end of the stream or an error, and says which.
async fn receive_all(core: &Core, socket: &Fd) -> (Vec<u8>, Result<(), Errno>) {
    let mut all = Vec::new();
    loop {
        let mut receives = core.many(Op::Recv {
            socket: socket.clone(),
            one: false,
        });
        while !receives.ended() {
            let received = receives.next().await;
            match (received.result, received.output) {
                (Ok(len), Output::Received(bytes)) => {
                    assert_eq!(bytes.len(), len as usize);
                    all.extend_from_slice(&bytes);
                }
                (Ok(0), _) => return (all, Ok(())),
                (Err(Errno::NOBUFS), _) => {
                    let mut place = core.wait_for_buffers();
                    std::future::poll_fn(|_| core.poll_buffers_back(&mut place)).await;
                }
                (Err(Errno::CANCELED), _) => {}
                (Err(errno), _) => return (all, Err(errno)),
                (Ok(_), _) => panic!("bytes without a buffer"),
            }
        }
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n % 251) as u8).collect()
}

/// An echo of 200 kB over a machine with this seed and these faults; the trace's hash and the bytes.
fn echo(seed: u64, faults: Faults) -> (u64, Seen) {
    let client = Rc::new(Cell::new(None));
    let told = Rc::clone(&client);
    let world = run(seed, faults, async move |core, world| {
        let (listener, id) = world.listen();
        told.set(Some(world.connect(
            id,
            Duration::ZERO,
            [(SOON, Act::Send(pattern(200_000))), (SOON, Act::HalfClose)],
        )));
        let socket = accept_one(&core, listener).await;
        let (bytes, _) = receive_all(&core, &socket).await;
        let _ = send_all(&core, &socket, bytes).await;
    });
    (world.trace_hash(), world.seen(client.get().unwrap()))
}

#[test]
fn echoes_without_faults() {
    let (_, seen) = echo(1, Faults::default());
    assert!(seen.received == pattern(200_000));
    assert_eq!(seen.end, Some(End::Fin));
}

#[test]
fn echoes_whole_under_every_fault_but_a_reset() {
    for seed in 0..30 {
        let faults = Faults {
            reset: 0.0,
            no_descriptors: 0.0,
            ..Faults::seeded(seed)
        };
        let (_, seen) = echo(seed, faults);
        assert!(seen.received == pattern(200_000), "seed {seed}");
        assert_eq!(seen.end, Some(End::Fin), "seed {seed}");
    }
}

#[test]
fn the_same_seed_gives_the_same_trace_and_another_another() {
    let hash = |seed| {
        echo(
            seed,
            Faults {
                reset: 0.0,
                no_descriptors: 0.0,
                ..Faults::seeded(9)
            },
        )
        .0
    };
    assert_eq!(hash(7), hash(7));
    assert_ne!(hash(7), hash(8));
}

#[test]
fn time_is_virtual_and_timers_fire_in_order() {
    let started = Instant::now();
    let fired = Rc::new(RefCell::new(Vec::new()));
    let (core, world) = new(3, Faults::default(), Config::default());
    for hours in [3, 1, 2] {
        let (core, fired) = (core.clone(), Rc::clone(&fired));
        let time = Duration::from_secs(hours * 3600);
        core.clone().spawn(async move {
            let begin = core.now();
            let mut timer = Timer::new(&core);
            timer.set(begin + time);
            timer.expired().await;
            assert!(core.now() >= begin + time);
            fired.borrow_mut().push(hours);
        });
    }
    world.run_until(1000, || core.usage().tasks == 0);
    world.finish();
    assert_eq!(*fired.borrow(), [1, 2, 3]);
    assert!(world.elapsed() >= Duration::from_secs(3 * 3600));
    assert!(started.elapsed() < Duration::from_secs(60));
}

#[test]
fn a_close_with_unread_bytes_resets_and_a_clean_one_does_not() {
    for drain in [false, true] {
        let client = Rc::new(Cell::new(None));
        let told = Rc::clone(&client);
        let world = run(5, Faults::default(), async move |core, world| {
            let (listener, id) = world.listen();
            let script = [(SOON, Act::Send(b"hello".to_vec())), (SOON, Act::HalfClose)];
            told.set(Some(world.connect(id, Duration::ZERO, script)));
            let socket = accept_one(&core, listener).await;
            let readable = Interest::Readable;
            core.once(Op::Ready {
                fd: socket.clone(),
                interest: readable,
            })
            .await;
            if drain {
                receive_all(&core, &socket).await.1.unwrap();
            }
        });
        let end = if drain { End::Fin } else { End::Reset };
        assert_eq!(world.seen(client.get().unwrap()).end, Some(end));
    }
}

#[test]
fn an_abort_reaches_the_server_as_a_reset() {
    run(6, Faults::default(), async |core, world| {
        let (listener, id) = world.listen();
        let script = [(SOON, Act::Send(b"hello".to_vec())), (SOON, Act::Abort)];
        world.connect(id, Duration::ZERO, script);
        let socket = accept_one(&core, listener).await;
        let (_, end) = receive_all(&core, &socket).await;
        assert_eq!(end, Err(Errno::CONNRESET));
        let sent = send_all(&core, &socket, b"late".to_vec()).await;
        assert_eq!(sent, Err(Errno::CONNRESET));
        let sent = send_all(&core, &socket, b"later".to_vec()).await;
        assert_eq!(sent, Err(Errno::PIPE));
    });
}

#[test]
fn a_slow_reader_makes_a_send_wait() {
    let client = Rc::new(Cell::new(None));
    let told = Rc::clone(&client);
    let world = run(7, Faults::default(), async move |core, world| {
        let (listener, id) = world.listen();
        let every = Duration::from_millis(1);
        let slow = Act::Read(Pace::Slow { bytes: 1000, every });
        let client = world.connect(id, Duration::ZERO, [(SOON, slow)]);
        world.set_window(client, 2000);
        told.set(Some(client));
        let socket = accept_one(&core, listener).await;
        let begin = core.now();
        send_all(&core, &socket, pattern(200_000)).await.unwrap();
        assert!(core.now() - begin > Duration::from_millis(100), "it waited");
        // The last buffer goes on by itself; nobody waits for it here.
    });
    world.run_for(Duration::from_secs(1));
    let seen = world.seen(client.get().unwrap());
    assert!(seen.received == pattern(200_000));
    assert_eq!(seen.end, Some(End::Fin));
}

fn request(dir: &Fd, path: &str, resolve: ResolveFlags) -> OpenRequest {
    OpenRequest {
        dir: Some(dir.clone()),
        path: CString::new(path).unwrap(),
        flags: OFlags::RDONLY,
        resolve,
    }
}

#[test]
fn files_open_beneath_a_directory_and_are_cold_until_they_are_read() {
    run(8, Faults::default(), async |core, world| {
        world.file("www/a/file", pattern(10_000));
        let root = world.root();
        let open = |dir: &Fd, path: &str| {
            core.once(Op::Open(Box::new(request(
                dir,
                path,
                ResolveFlags::BENEATH,
            ))))
        };
        let Output::Opened(www) = open(&root, "www").await.output else {
            panic!("not opened")
        };
        for (path, errno) in [
            ("../www", Errno::XDEV),
            ("/www", Errno::XDEV),
            ("a/../../www", Errno::XDEV),
            ("missing", Errno::NOENT),
            ("a/file/more", Errno::NOTDIR),
            ("a/file/", Errno::NOTDIR),
        ] {
            assert_eq!(open(&www, path).await.result, Err(errno), "{path}");
        }
        let cached = || core.open_cached(&request(&www, "a/file", ResolveFlags::BENEATH));
        assert_eq!(cached().err(), Some(Errno::AGAIN));
        let Output::Opened(file) = open(&www, "a/../a/./file").await.output else {
            panic!("not opened")
        };
        assert!(cached().is_ok());
        let stat = core.stat(&file).unwrap();
        assert_eq!(
            (stat.size, stat.identity),
            (10_000, core.stat_at(&www, c"a/file").unwrap().identity)
        );
        let mut into = vec![0; 5000];
        assert_eq!(
            core.read_resident(&file, &mut into, 4000),
            Err(Errno::AGAIN)
        );
        let read = Op::Read {
            file: file.clone(),
            data: Vec::new(),
            len: 5000,
            offset: 4000,
        };
        let read = core.once(read).await;
        assert_eq!(read.result, Ok(5000));
        assert!(matches!(read.output, Output::Data(data) if data == pattern(10_000)[4000..9000]));
        assert_eq!(core.read_resident(&file, &mut into, 4000), Ok(5000));
        assert_eq!(core.read_resident(&file, &mut into, 10_000), Ok(0));
        world.file("www/a/file", b"new".to_vec());
        assert_eq!(
            core.stat(&file).unwrap(),
            stat,
            "the handle keeps the old file"
        );
        assert_eq!(core.stat_at(&www, c"a/file").unwrap().size, 3);
    });
}

#[test]
fn a_multishot_may_end_by_itself_and_a_full_queue_loses_nothing() {
    let faults = Faults {
        multishot_end: 1.0,
        queue_full: 0.8,
        late: 0.8,
        ..Faults::default()
    };
    let (_, seen) = echo(11, faults);
    assert!(seen.received == pattern(200_000));
}

#[test]
fn jobs_answer_or_are_lost() {
    for (loss, expected) in [(0.0, Ok(0)), (1.0, Err(Errno::CANCELED))] {
        let faults = Faults {
            job_loss: loss,
            ..Faults::default()
        };
        run(12, faults, async move |core, _| {
            let done = core.once(Op::Offload(Box::new(|| Box::new(42)))).await;
            assert_eq!(done.result, expected);
            if let Output::Answer(answer) = done.output {
                assert_eq!(answer.downcast_ref(), Some(&42));
            }
        });
    }
}

/// What the simulation says when this breaks a rule.
fn broken_rule(break_it: impl FnOnce()) -> String {
    let outcome = catch_unwind(AssertUnwindSafe(break_it));
    let panic = outcome.expect_err("the rule is kept");
    panic.downcast_ref::<String>().cloned().unwrap_or_default()
}

#[test]
fn a_second_close_is_found_with_the_seed() {
    let why = broken_rule(|| {
        let (core, world) = new(77, Faults::default(), Config::default());
        let (listener, _) = world.listen();
        let twin = core.simulated(listener.raw() as u32);
        drop((listener, twin));
        world.finish();
    });
    assert!(
        why.contains("seed 77") && why.contains("after its close"),
        "{why}"
    );
}

#[test]
fn a_use_after_the_close_is_found() {
    let why = broken_rule(|| {
        let (core, world) = new(78, Faults::default(), Config::default());
        let (listener, _) = world.listen();
        let twin = core.simulated(listener.raw() as u32);
        drop(listener);
        world.run_for(SOON);
        let _ = core.send_now(&twin, b"x", false);
    });
    assert!(why.contains("after its close"), "{why}");
}

#[test]
fn a_close_under_an_op_in_flight_is_found() {
    let why = broken_rule(|| {
        let (core, world) = new(79, Faults::default(), Config::default());
        let (listener, _) = world.listen();
        let twin = core.simulated(listener.raw() as u32);
        let _accepts = core.many(Op::Accept {
            listener,
            one: false,
        });
        drop(twin);
        world.run_for(SOON);
    });
    assert!(why.contains("under an op in flight"), "{why}");
}

#[test]
fn two_receives_on_one_socket_are_found() {
    let why = broken_rule(|| {
        let (core, world) = new(80, Faults::default(), Config::default());
        let (listener, _) = world.listen();
        let first = core.many(Op::Recv {
            socket: listener.clone(),
            one: false,
        });
        let second = core.many(Op::Recv {
            socket: listener,
            one: false,
        });
        drop((first, second));
    });
    assert!(why.contains("a second Receive"), "{why}");
}

#[test]
fn touched_memory_is_found() {
    let (_, world) = new(81, Faults::default(), Config::default());
    let why = broken_rule(|| {
        let mut slots = SlotTable::default();
        let buffers = BufPool::software(2);
        let kernel = Rc::new(RefCell::new(Kernel::new(
            81,
            Faults::default(),
            Config::default(),
        )));
        let (socket, _) = world.listen();
        kernel.borrow_mut().open(Object::Socket(0));
        let (data, from) = (b"abc".to_vec(), 0);
        let mut op = Op::Send {
            socket,
            data,
            from,
            more: false,
        };
        let key = slots.reserve(None, None).expect("the table is empty");
        kernel.borrow_mut().start(key, &mut op);
        slots.put(key, op);
        if let Some(Op::Send { data, .. }) = slots.larger_mut(key) {
            data[1] = b'x';
        }
        let mut hands = Hands {
            slots: &mut slots,
            buffers: &buffers,
        };
        kernel
            .borrow_mut()
            .turn(Some(SOON), &mut hands, &mut Vec::new());
    });
    assert!(why.contains("was touched"), "{why}");
}

#[test]
fn a_leak_and_an_endless_wait_are_found() {
    let why = broken_rule(|| {
        let (_, world) = new(82, Faults::default(), Config::default());
        let (listener, _) = world.listen();
        std::mem::forget(listener);
        world.finish();
    });
    assert!(why.contains("1 open descriptors"), "{why}");
    let why = broken_rule(|| {
        let (core, world) = new(83, Faults::default(), Config::default());
        core.clone().spawn(async move { core.woken(&mut 0).await });
        world.run_until(10, || false);
    });
    assert!(why.contains("waits for ever"), "{why}");
}

#[test]
fn another_thread_may_wake_the_core() {
    run(13, Faults::default(), async |core, world| {
        world.wake();
        core.woken(&mut 0).await;
    });
}
