//! Timers, slots, buffers, pooled futures, and the choice of a server.

use std::hint::black_box;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use beltway::runtime::buf::BufPool;
use beltway::runtime::op::{Completion, Op, Output};
use beltway::runtime::slot::SlotTable;
use beltway::runtime::task::FuturePool;
use beltway::runtime::timer::Wheel;
use beltway::upstream::balance::{
    PeakEwma, Picker, Policy, ServerView, Standing, Tried, server_id,
};

use super::{Piece, piece};

pub(super) fn pieces() -> Vec<Piece> {
    let mut pieces = vec![timer(), timer_among_many(), slot(), buffer(), future()];
    let hash = Policy::Hash {
        load_percent_max: None,
    };
    pieces.extend([
        pick("pick-round-robin", Policy::RoundRobin),
        pick("pick-least-connections", Policy::LeastConnections),
        pick("pick-power-of-two", Policy::PowerOfTwo),
        pick("pick-hash", hash),
    ]);
    pieces
}

fn timer() -> Piece {
    let mut wheel = Wheel::new(0);
    let mut now = 0;
    piece("timer-arm-cancel", move || {
        now += 1;
        let key = wheel.insert(now + 75_000, now);
        assert!(black_box(wheel.cancel(key)));
    })
}

/// As a busy core has them: many wait, time goes on, one fires and one is armed.
fn timer_among_many() -> Piece {
    const WAITING: u64 = 4096;
    let mut wheel = Wheel::new(0);
    for n in 0..WAITING {
        wheel.insert(n, n);
    }
    let (mut now, mut fired) = (0, Vec::with_capacity(4));
    piece("timer-fire-among-4096", move || {
        fired.clear();
        wheel.advance(black_box(now), &mut fired);
        black_box(wheel.next_expiry(now));
        wheel.insert(now + WAITING, now);
        assert_eq!(fired.len(), 1);
        now += 1;
    })
}

fn slot() -> Piece {
    let mut table = SlotTable::default();
    piece("slot-life", move || {
        let op = Op::Offload(Box::new(|| Box::new(())));
        let Ok(key) = table.insert(black_box(op), None, None) else {
            unreachable!("the table is empty")
        };
        let slot = table.get_mut(key).expect("a live slot");
        slot.push(Completion {
            result: Ok(1024),
            more: false,
            output: Output::None,
        });
        assert!(black_box(slot.pop()).is_some());
        assert!(black_box(table.remove(key)).is_some());
    })
}

fn buffer() -> Piece {
    let pool = BufPool::software(64);
    piece("buffer-fill-release", move || {
        let filled = pool.fill(|bytes| {
            bytes[..64].fill(black_box(b'x'));
            Ok::<_, ()>(64)
        });
        assert_eq!(
            black_box(filled)
                .expect("a free buffer")
                .map(|bytes| bytes.len()),
            Ok(64)
        );
    })
}

fn future() -> Piece {
    let pool = FuturePool::default();
    let storage = [0_u8; 1024];
    piece("future-of-1-kib", move || {
        let work = async {
            let kept = black_box(storage);
            std::future::ready(()).await;
            kept[0]
        };
        let mut pooled = std::pin::pin!(pool.boxed(|| work));
        let polled = pooled
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()));
        assert_eq!(polled, Poll::Ready(0));
    })
}

fn pick(name: &'static str, policy: Policy) -> Piece {
    let now = Instant::now();
    let mut servers: Vec<ServerView> = (0..8_u16)
        .map(|n| ServerView {
            id: server_id(&format!("10.0.0.{n}:3000")),
            weight: 1 + n % 2,
            is_backup: false,
            standing: Standing::Up,
            in_flight: u32::from(n) % 3,
            in_flight_max: None,
            latency: PeakEwma::default(),
            recovered: None,
        })
        .collect();
    for (server, ms) in servers.iter_mut().zip(1..) {
        server.latency.observe(Duration::from_millis(ms), now);
    }
    let mut picker = Picker::new(policy, Duration::ZERO, 7);
    let tried = Tried::default();
    piece(name, move || {
        let key = Some(&b"client-184467"[..]);
        assert!(black_box(picker.pick(black_box(&servers), key, now, &tried)).is_some());
    })
}
