//! A tunnel of which one end is under TLS, or both: bytes are decrypted from there, and encrypted to there.
//! It is what [`splice::tunnel`](crate::net::splice::tunnel) is between two plain sockets.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::pin;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::net::recv::{End, Receiver};
use crate::net::send::{SendError, Sender, UNHURRIED};
use crate::net::splice::{Cause, Early, Moved, TunnelEnd, poll_flows};
use crate::runtime::executor::Core;
use crate::runtime::future::Timer;

/// One end of a tunnel.
pub struct TunnelSide<'t> {
    /// Where its bytes come from.
    pub receiver: &'t mut Receiver,
    /// Where bytes for it go.
    pub sender: &'t mut Sender,
}

/// Moves bytes both ways, as [`splice::tunnel`](crate::net::splice::tunnel) does, between two connections
/// that may be secured. An end of either direction is told to the other end: to a secured one in the
/// words of TLS, too. A secured stream that is cut off makes the tunnel fail.
pub async fn tunnel(
    core: &Core,
    (a, b): (TunnelSide<'_>, TunnelSide<'_>),
    early: &mut Early,
    idle_timeout: Option<Duration>,
) -> TunnelEnd {
    let sockets = [a.receiver.socket().clone(), b.receiver.socket().clone()];
    let moved = [Moved::default(), Moved::default()];
    let active = Cell::new(core.now());
    let mut ends = [None, None];
    let mut is_idle = false;
    a.sender.set_rule(UNHURRIED);
    b.sender.set_rule(UNHURRIED);
    {
        let from_a = std::mem::take(&mut early.from_a);
        let from_b = std::mem::take(&mut early.from_b);
        let there = flow(core, (a.receiver, b.sender), from_a, &moved[0], &active);
        let back = flow(core, (b.receiver, a.sender), from_b, &moved[1], &active);
        let (mut there, mut back) = (pin!(there), pin!(back));
        let mut timer = Timer::new(core);
        let mut both = || poll_flows([there.as_mut(), back.as_mut()], &mut ends);
        loop {
            let Some(idle) = idle_timeout else {
                poll_fn(|_| both()).await;
                break;
            };
            let last = active.get();
            timer.set(last + idle);
            if timer.bound(&mut both).await.is_some() {
                break;
            }
            if active.get() == last {
                is_idle = true;
                break;
            }
        }
    }
    if ends.iter().any(|end| matches!(end, Some(Err(_)))) {
        sockets
            .iter()
            .for_each(|socket| core.reset_on_close(socket));
    }
    TunnelEnd::of(&moved, ends, is_idle)
}

/// One direction.
async fn flow(
    core: &Core,
    (from, to): (&mut Receiver, &mut Sender),
    early: Vec<u8>,
    moved: &Moved,
    active: &Cell<Instant>,
) -> Result<(), Cause> {
    let mut timer = Timer::new(core);
    let mut data = early;
    loop {
        let bytes = data.len();
        if bytes > 0 {
            moved.took(bytes);
            active.set(core.now());
            to.buffer(&mut timer, data, false).await.map_err(broken)?;
            moved.gave(bytes);
            active.set(core.now());
        }
        match poll_fn(|_| from.poll_next()).await {
            Ok(came) => {
                data = core.send_buffer();
                data.extend_from_slice(&came);
            }
            Err(End::Closed) if from.is_cut() => return Err(Cause::SourceBroken(Errno::PROTO)),
            Err(End::Closed) => break,
            Err(End::Broken(errno)) => return Err(Cause::SourceBroken(errno)),
        }
    }
    to.finish(&mut timer).await.map_err(broken)?;
    if !to.waits_for_close() {
        core.shut_down_write(to.socket());
    }
    Ok(())
}

fn broken(error: SendError) -> Cause {
    match error {
        SendError::Broken(errno) => Cause::SinkBroken(errno),
        _ => Cause::SinkTooSlow,
    }
}
