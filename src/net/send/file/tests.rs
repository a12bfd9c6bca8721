//! Files on their way to a simulated client, from a disk that is slow, fails or loses what it had.

use std::cell::{Cell, RefCell};
use std::ffi::CString;
use std::rc::Rc;
use std::time::Duration;

use rustix::fs::{OFlags, ResolveFlags};

use super::*;
use crate::net::send::{ProgressRule, Warmth};
use crate::net::testing::{on_each_engine, simulate, spawn_mortal};
use crate::runtime::engine::sim::{Act, ClientId, Config, Faults, Pace, World, new};
use crate::runtime::executor::Core;
use crate::runtime::op::{OpenRequest, Output};

const RULE: ProgressRule = ProgressRule {
    window: Duration::from_secs(10),
    rate: 500,
};

fn content(len: usize) -> Vec<u8> {
    (0..len)
        .map(|at| ((at * 7 + at / 251) % 253) as u8)
        .collect()
}

/// A connection of the core's whose client reads at this pace.
async fn connection(core: &Core, world: &World, pace: Pace) -> (Fd, ClientId) {
    let (listener, id) = world.listen();
    let script = [(Duration::ZERO, Act::Read(pace))];
    let client = world.connect(id, Duration::ZERO, script);
    loop {
        let accept = Op::Accept {
            listener: listener.clone(),
            one: true,
        };
        if let Output::Socket(socket) = core.once(accept).await.output {
            return (socket, client);
        }
    }
}

async fn open(core: &Core, world: &World, path: &str) -> Fd {
    let root = world.root();
    loop {
        let request = OpenRequest {
            dir: Some(root.clone()),
            path: CString::new(path).unwrap(),
            flags: OFlags::RDONLY,
            resolve: ResolveFlags::BENEATH,
        };
        if let Output::Opened(file) = core.once(Op::Open(Box::new(request))).await.output {
            return file;
        }
    }
}

type Sent = Rc<RefCell<Option<(Result<(), SendError>, ClientId)>>>;

/// Sends the file from `offset` on, and ends the connection.
async fn send(core: Core, world: World, (offset, length): (u64, u64), pace: Pace, told: Sent) {
    let (socket, client) = connection(&core, &world, pace).await;
    let file = open(&core, &world, "file").await;
    let part = FilePart {
        file,
        offset,
        length,
        direct: DirectMode::Off,
        warmth: Warmth::default(),
    };
    let (mut timer, head) = (Timer::new(&core), b"head".to_vec());
    let mut sender = Sender::new(&core, socket.clone(), RULE);
    let result = sender.file(&mut timer, head, part, false).await;
    if result.is_err() {
        core.reset_on_close(&socket);
    }
    *told.borrow_mut() = Some((result, client));
}

/// What a client has received of the file, after the head.
fn received(world: &World, client: ClientId) -> Vec<u8> {
    let received = world.seen(client).received;
    received.get(4..).unwrap_or_default().to_vec()
}

fn without_ends(seed: u64) -> Faults {
    Faults {
        reset: 0.0,
        io_error: 0.0,
        ..Faults::seeded(seed)
    }
}

#[test]
fn what_was_just_written_is_in_memory_however_much_of_it_is_wanted() {
    on_each_engine(|core| {
        let file = tempfile::tempfile().unwrap();
        file.set_len(300_000).unwrap();
        std::io::Write::write_all(&mut &file, &content(300_000)).unwrap();
        let file = core.own(file.into());
        for reach in [0, 1, 2, 300_000, usize::MAX] {
            for offset in [0, 1, 299_999, 300_000, 1 << 40] {
                assert!(core.is_resident(&file, offset, reach), "{offset} {reach}");
            }
        }
    });
}

#[test]
fn a_file_arrives_whole_and_nobody_waits_for_the_disk() {
    for seed in 0..60 {
        let bytes = content(300_000 + seed as usize * 11_003);
        let (offset, end) = (seed * 977, bytes.len() as u64 - seed * 13);
        let told = Sent::default();
        let (tell, file) = (told.clone(), bytes.clone());
        let world = simulate(seed, without_ends(seed), |core, world| {
            world.file("file", file);
            send(core, world, (offset, end - offset), Pace::Eager, tell)
        });
        let (result, client) = told.take().unwrap();
        assert_eq!(result, Ok(()), "seed {seed}");
        let expected = &bytes[offset as usize..end as usize];
        assert!(received(&world, client) == expected, "seed {seed}");
        assert_eq!(world.blocked(), 0, "seed {seed}");
    }
}

#[test]
fn a_disk_that_takes_long_is_not_the_clients_fault() {
    let faults = Faults {
        slow_disk: 1.0,
        cold: 0.7,
        ..Faults::default()
    };
    let bytes = content(3 << 20);
    let told = Sent::default();
    let (tell, file, length) = (told.clone(), bytes.clone(), bytes.len() as u64);
    let world = simulate(7, faults, |core, world| {
        world.file("file", file);
        send(core, world, (0, length), Pace::Eager, tell)
    });
    let (result, client) = told.take().unwrap();
    assert_eq!(result, Ok(()));
    assert!(received(&world, client) == bytes);
    assert!(world.elapsed() > 2 * RULE.window, "it took long");
    assert_eq!(world.blocked(), 0);
}

#[test]
fn a_disk_that_fails_ends_the_transfer() {
    let faults = Faults {
        io_error: 1.0,
        ..Faults::default()
    };
    let told = Sent::default();
    let tell = told.clone();
    let world = simulate(3, faults, |core, world| {
        world.file("file", content(900_000));
        send(core, world, (0, 900_000), Pace::Eager, tell)
    });
    let (result, client) = told.take().unwrap();
    assert_eq!(result, Err(SendError::File(Errno::IO)));
    assert!(received(&world, client).is_empty());
}

#[test]
fn a_file_that_shrinks_ends_the_transfer_and_what_came_is_what_was() {
    let mut cut = 0;
    for seed in 0..60 {
        let bytes = content(2_000_000);
        let told = Sent::default();
        let (tell, file) = (told.clone(), bytes.clone());
        let world = simulate(seed, without_ends(seed), |core, world| {
            world.file("file", file);
            let (inner, outer) = (core.clone(), world.clone());
            let pace = Pace::Slow {
                bytes: 40_000,
                every: Duration::from_millis(1),
            };
            core.spawn(send(inner, outer, (0, 2_000_000), pace, tell));
            async move {
                for _ in 0..seed * 4 {
                    core.yield_turn().await;
                }
                world.truncate("file", 100_000 + seed as usize * 5_000);
            }
        });
        let (result, client) = told.take().unwrap();
        match result {
            Ok(()) => {}
            Err(SendError::FileShrank) => cut += 1,
            Err(error) => panic!("seed {seed}: {error:?}"),
        }
        let got = received(&world, client);
        assert!(bytes.starts_with(&got), "seed {seed}");
        assert!(result.is_err() || got.len() == bytes.len(), "seed {seed}");
    }
    assert!(cut > 10, "{cut} were cut");
}

#[test]
fn a_transfer_may_be_dropped_at_each_of_its_polls() {
    for seed in 0..3 {
        for polls in 1.. {
            let (core, world) = new(seed, without_ends(seed), Config::default());
            world.file("file", content(400_000));
            let (died, told) = (Rc::new(Cell::new(false)), Sent::default());
            let pace = Pace::Slow {
                bytes: 90_000,
                every: Duration::from_millis(1),
            };
            let work = send(core.clone(), world.clone(), (0, 400_000), pace, told);
            spawn_mortal(&core, polls, died.clone(), work);
            let watched = core.clone();
            world.run_until(400_000, || watched.usage().tasks == 0);
            world.finish();
            if !died.get() {
                assert!(polls > 5, "it was alive for {polls} polls only");
                break;
            }
        }
    }
}
