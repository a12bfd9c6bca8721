//! The pool over simulated servers, and over real sockets on both engines.

use std::future::poll_fn;
use std::io::Write as _;
use std::net::{TcpListener, TcpStream};

use super::*;
use crate::net::connect::{ConnectError, connect};
use crate::net::recv::End;
use crate::net::{on_each_engine, run, simulate, spawn_mortal};
use crate::runtime::buf::BUFFER_SIZE;
use crate::runtime::engine::sim::{Act, Answer, Faults, World};

const TIMEOUT: Duration = Duration::from_secs(3);

fn address(n: u8) -> Address {
    Address::Tcp(([192, 0, 2, n], 80).into())
}

fn limits(idle_per_server: usize, idle_max: usize) -> Limits {
    Limits {
        idle_per_server,
        idle_max,
        idle_timeout: Duration::from_secs(10),
    }
}

async fn take(pool: &Pool, address: &Address) -> Result<Connection, ConnectError> {
    let core = pool.0.core.clone();
    pool.take(address, async || connect(&core, address, TIMEOUT).await)
        .await
}

async fn pause(core: &Core, time: Duration) {
    let mut timer = Timer::new(core);
    timer.set(core.now() + time);
    timer.expired().await;
}

/// Runs a task with a pool over servers 1 to 4, which hold still, in a simulation without faults.
fn pooled<F: Future<Output = ()> + 'static>(
    limits: Limits,
    task: impl FnOnce(Core, World, Pool) -> F + 'static,
) {
    simulate(11, Faults::default(), async move |core, world| {
        (1..=4).for_each(|n| world.backend(&address(n), Answer::Accepts, |_| Vec::new()));
        let pool = Pool::new(&core, limits);
        task(core, world, pool.clone()).await;
        pool.close();
        assert_eq!((pool.counters().idle, pool.counters().busy), (0, 0));
        assert!(pool.0.servers.borrow().is_empty());
    });
}

#[test]
fn the_connection_that_was_given_back_last_is_used_again_first() {
    pooled(limits(8, 8), async |_, world, pool| {
        let to = address(1);
        let first = take(&pool, &to).await.unwrap();
        let second = take(&pool, &to).await.unwrap();
        assert!(!first.is_reused() && pool.busy(&to) == 2);
        let sockets = [first.socket().raw(), second.socket().raw()];
        first.give_back();
        second.give_back();
        assert_eq!((pool.busy(&to), pool.idle(&to)), (0, 2));
        let again = take(&pool, &to).await.unwrap();
        assert_eq!((again.socket().raw(), again.uses()), (sockets[1], 2));
        let other = take(&pool, &to).await.unwrap();
        assert_eq!(other.socket().raw(), sockets[0]);
        drop((again, other));
        let counters = pool.counters();
        assert_eq!((counters.opened, counters.reused), (2, 2));
        assert_eq!((counters.discarded, counters.idle), (2, 0));
        assert_eq!(world.peers(&to).len(), 2);
    });
}

#[test]
fn a_connection_that_its_server_ends_is_dropped_soon_and_never_given_out() {
    for by_keeper in [false, true] {
        pooled(limits(8, 8), async move |core, world, pool| {
            let to = address(1);
            take(&pool, &to).await.unwrap().give_back();
            if by_keeper {
                // The keeper has seen it, so that it wakes by itself.
                pause(&core, Duration::from_millis(1500)).await;
            }
            let peer = world.peers(&to)[0];
            world.act(peer, Duration::ZERO, Act::HalfClose);
            pause(&core, Duration::from_millis(100)).await;
            if by_keeper {
                assert_eq!((pool.counters().ended, pool.idle(&to)), (1, 0));
                assert!(world.seen(peer).end.is_some(), "our end is closed, too");
            }
            let fresh = take(&pool, &to).await.unwrap();
            assert!(!fresh.is_reused());
            assert_eq!((pool.counters().ended, pool.counters().opened), (1, 2));
        });
    }
}

#[test]
fn behind_a_large_response_the_next_ones_are_received_piece_by_piece() {
    pooled(limits(8, 8), async |core, world, pool| {
        let to = address(1);
        let mut first = take(&pool, &to).await.unwrap();
        first.note_bulk();
        first.give_back();
        let peer = world.peers(&to)[0];
        let response = || Act::Send(vec![7; 3 * BUFFER_SIZE]);
        // So many small ones make up for it, after the large one itself.
        for small in 0..BULK_MEMORY {
            let mut connection = take(&pool, &to).await.unwrap();
            world.act(peer, Duration::ZERO, response());
            let first = poll_fn(|_| connection.receiver().poll_next()).await;
            pause(&core, Duration::from_millis(100)).await;
            let mut rest = vec![0; 3 * BUFFER_SIZE];
            let left = core.receive_now(connection.socket(), &mut rest);
            let expected = 3 * BUFFER_SIZE - first.unwrap().len();
            assert_eq!(left, Ok(expected), "after {small} small responses");
            connection.give_back();
        }
        let mut connection = take(&pool, &to).await.unwrap();
        world.act(peer, Duration::ZERO, response());
        pause(&core, Duration::from_millis(100)).await;
        for _ in 0..3 {
            assert!(connection.receiver().poll_next().is_ready());
        }
        connection.give_back();
    });
}

#[test]
fn what_lies_behind_bytes_that_were_read_by_other_means_is_found_at_once() {
    for (bytes, expected) in [(&b"HTTP/1.1 200 OK\r\n\r\n"[..], (1, 0)), (b"", (0, 1))] {
        pooled(limits(8, 8), async move |core, world, pool| {
            let to = address(1);
            // A relay leaves no receive armed: what has come is in the socket alone.
            let connection = take(&pool, &to).await.unwrap();
            let act = match bytes.is_empty() {
                true => Act::HalfClose,
                false => Act::Send(bytes.to_vec()),
            };
            world.act(world.peers(&to)[0], Duration::ZERO, act);
            pause(&core, Duration::from_millis(100)).await;
            connection.give_back();
            assert!(pool.take_idle(&to, None).is_none(), "within the same turn");
            let counters = pool.counters();
            assert_eq!((counters.unasked, counters.ended), expected);
        });
    }
}

#[test]
fn bytes_that_nobody_asked_for_spoil_a_connection() {
    pooled(limits(8, 8), async |core, world, pool| {
        let to = address(1);
        take(&pool, &to).await.unwrap().give_back();
        let smuggled = Act::Send(b"HTTP/1.1 200 OK\r\n\r\n".to_vec());
        world.act(world.peers(&to)[0], Duration::ZERO, smuggled);
        pause(&core, Duration::from_millis(100)).await;
        assert!(pool.take_idle(&to, None).is_none());
        assert_eq!(pool.counters().unasked, 1);

        // They were there already when it was given back.
        let connection = take(&pool, &to).await.unwrap();
        world.act(
            world.peers(&to)[1],
            Duration::ZERO,
            Act::Send(b"x".to_vec()),
        );
        let mut connection = connection;
        let first = std::future::poll_fn(|_| connection.receiver().poll_next()).await;
        assert_eq!(&first.unwrap()[..], b"x");
        world.act(
            world.peers(&to)[1],
            Duration::ZERO,
            Act::Send(b"y".to_vec()),
        );
        pause(&core, Duration::from_millis(100)).await;
        connection.give_back();
        assert_eq!((pool.counters().unasked, pool.idle(&to)), (2, 0));
    });
}

#[test]
fn an_idle_connection_is_closed_by_its_timeout() {
    pooled(limits(8, 8), async |core, world, pool| {
        let to = address(1);
        take(&pool, &to).await.unwrap().give_back();
        pause(&core, Duration::from_secs(9)).await;
        assert_eq!(pool.idle(&to), 1);
        pause(&core, Duration::from_millis(2500)).await;
        assert_eq!((pool.idle(&to), pool.counters().expired), (0, 1));
        assert!(pool.0.keeper.get().is_none(), "nothing is left to watch");
        assert!(world.seen(world.peers(&to)[0]).end.is_some());
    });
}

#[test]
fn idle_connections_are_bounded_by_server_and_in_all() {
    pooled(limits(2, 3), async |core, _, pool| {
        let mut taken = Vec::new();
        for n in [1, 1, 1, 2, 3] {
            taken.push(take(&pool, &address(n)).await.unwrap());
            pause(&core, Duration::from_millis(1)).await;
        }
        let mut given = taken.into_iter();
        let mut next = || given.next().unwrap().give_back();
        for expected in [[1, 0, 0], [2, 0, 0], [2, 0, 0], [2, 1, 0]] {
            next();
            assert_eq!([1, 2, 3].map(|n| pool.idle(&address(n))), expected);
        }
        pause(&core, Duration::from_millis(1)).await;
        next();
        let counters = pool.counters();
        assert_eq!([1, 2, 3].map(|n| pool.idle(&address(n))), [1, 1, 1]);
        assert_eq!((counters.idle, counters.crowded_out), (3, 2));
        pool.set_limits(limits(2, 1));
        pause(&core, Duration::from_millis(1500)).await;
        assert_eq!((pool.counters().idle, pool.idle(&address(3))), (1, 1));
        pool.set_limits(limits(0, 1));
        take(&pool, &address(4)).await.unwrap().give_back();
        assert_eq!(pool.idle(&address(4)), 0, "none is kept");
    });
}

#[test]
fn a_cleared_server_keeps_nothing_of_before() {
    pooled(limits(8, 8), async |_, world, pool| {
        let to = address(1);
        let [busy, idle, other] = [
            take(&pool, &to).await.unwrap(),
            take(&pool, &to).await.unwrap(),
            take(&pool, &address(2)).await.unwrap(),
        ];
        idle.give_back();
        other.give_back();
        pool.clear(&to);
        assert_eq!((pool.idle(&to), pool.busy(&to)), (0, 1));
        busy.give_back();
        assert_eq!((pool.idle(&to), pool.counters().cleared), (0, 2));
        assert_eq!(pool.idle(&address(2)), 1);
        // What is opened from now on is kept again.
        take(&pool, &to).await.unwrap().give_back();
        assert_eq!((pool.idle(&to), world.peers(&to).len()), (1, 3));
    });
}

#[test]
fn a_failed_open_is_told_and_counts_for_nothing() {
    pooled(limits(8, 8), async |_, world, pool| {
        let to = address(1);
        world.set_answer(&to, Answer::Refuses);
        let refused = take(&pool, &to).await.err();
        assert_eq!(refused, Some(ConnectError::Refused));
        let counters = pool.counters();
        assert_eq!((counters.opened, counters.busy, pool.busy(&to)), (0, 0, 0));
    });
}

/// Takes, uses and gives back connections to servers that end them as they like.
async fn use_pool(core: Core, world: World, pool: Pool, rounds: u32) {
    let mut random = world.random(5);
    for _ in 0..rounds {
        let to = address(1 + random.below(2) as u8);
        let Ok(mut connection) = take(&pool, &to).await else {
            continue;
        };
        let asked = core.send_now(connection.socket(), b"ask", false);
        let mut timer = Timer::new(&core);
        timer.set(core.now() + Duration::from_secs(1));
        let answer = timer.bound(|| connection.receiver().poll_next()).await;
        match answer {
            Some(Ok(bytes)) => {
                drop(bytes);
                connection.give_back();
            }
            Some(Err(End::Closed | End::Broken(_))) | None => drop((connection, asked)),
        }
        if random.below(3) == 0 {
            pause(&core, Duration::from_millis(random.below(3000))).await;
        }
    }
    pool.close();
}

/// Answers once by itself, and then ends the connection or speaks on.
fn unreliable(n: usize) -> Vec<(Duration, Act)> {
    let soon = Duration::from_millis(2);
    let mut script = vec![
        (soon, Act::Await(Box::new(|got| got.len() >= 3))),
        (soon, Act::Send(b"answer".to_vec())),
    ];
    match n % 4 {
        0 => script.push((soon * 20, Act::HalfClose)),
        1 => script.push((soon * 40, Act::Send(b"unasked".to_vec()))),
        2 => script.push((soon * 30, Act::Abort)),
        _ => {}
    }
    script
}

#[test]
fn nothing_is_left_however_servers_behave_and_wherever_the_user_dies() {
    let (mut deaths, mut total) = (0, Counters::default());
    for seed in 0..40 {
        let mut polls = 1;
        loop {
            let died = Rc::new(Cell::new(false));
            let flag = Rc::clone(&died);
            let counted = Rc::new(Cell::new(Counters::default()));
            let tell = Rc::clone(&counted);
            simulate(seed, Faults::seeded(seed), async move |core, world| {
                (1..=2).for_each(|n| world.backend(&address(n), Answer::Accepts, unreliable));
                let pool = Pool::new(&core, limits(2, 3));
                let work = use_pool(core.clone(), world, pool.clone(), 8);
                spawn_mortal(&core, polls, Rc::clone(&flag), work);
                // Longer than the user needs, and than the idle timeout.
                pause(&core, Duration::from_secs(60)).await;
                let counters = pool.counters();
                assert_eq!((counters.busy, counters.idle), (0, 0), "{counters:?}");
                assert!(pool.0.servers.borrow().is_empty());
                assert!(pool.0.keeper.get().is_none());
                tell.set(counters);
            });
            total.opened += counted.get().opened;
            total.reused += counted.get().reused;
            total.ended += counted.get().ended;
            total.unasked += counted.get().unasked;
            if !died.get() {
                break;
            }
            deaths += 1;
            polls += 1 + polls / 10;
        }
    }
    assert!(deaths > 300, "{deaths}");
    let Counters {
        reused,
        ended,
        unasked,
        ..
    } = total;
    assert!(reused > 0 && ended > 0 && unasked > 0, "{total:?}");
}

#[test]
fn real_servers_are_seen_to_end_and_to_speak_unasked() {
    on_each_engine(|core| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = Address::Tcp(listener.local_addr().unwrap());
        let pool = Pool::new(core, limits(8, 8));
        let give = |count: u64| {
            let (pool, to) = (pool.clone(), to.clone());
            core.spawn(async move {
                let mut taken = Vec::new();
                for _ in 0..count {
                    taken.push(take(&pool, &to).await.unwrap());
                }
                taken.into_iter().for_each(Connection::give_back);
            });
        };
        give(3);
        let deadline = Instant::now() + Duration::from_secs(10);
        let until = |done: &dyn Fn() -> bool| {
            while !done() {
                assert!(Instant::now() < deadline, "{:?}", pool.counters());
                core.turn(Some(Duration::from_millis(50))).unwrap();
            }
        };
        until(&|| pool.counters().idle == 3);
        let mut peers: Vec<TcpStream> = (0..3).map(|_| listener.accept().unwrap().0).collect();
        drop(peers.pop());
        until(&|| pool.counters().ended == 1);
        peers.last_mut().unwrap().write_all(b"unasked").unwrap();
        until(&|| pool.counters().unasked == 1);
        assert_eq!(pool.idle(&to), 1);
        give(2);
        until(&|| pool.counters().idle == 2);
        let counters = pool.counters();
        assert_eq!((counters.opened, counters.reused), (4, 1));
        pool.close();
        run(core);
        assert_eq!(pool.counters().idle, 0);
    });
}
