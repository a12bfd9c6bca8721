//! The responder as tasks on a core.

use std::future::poll_fn;
use std::net::TcpListener;
use std::rc::Rc;
use std::time::Duration;

use beltway::net::listener::{Listening, Population, accept_loop, limits};
use beltway::net::recv::Receiver;
use beltway::net::send::{ProgressRule, Sender};
use beltway::runtime::engine::caps::{EngineChoice, Selection};
use beltway::runtime::executor::Core;
use beltway::runtime::fd::Fd;
use beltway::runtime::future::Timer;
use beltway::runtime::mailbox::Wake;

use super::REQUEST;

/// No deadlines: a loop by hand has none either.
const RULE: ProgressRule = ProgressRule {
    window: Duration::from_secs(1),
    rate: 0,
};

/// Serves by io_uring.
pub(crate) fn serve_by_completion(listener: TcpListener, answer: &[u8]) {
    serve(EngineChoice::Uring, listener, answer);
}

/// Serves by epoll.
pub(crate) fn serve_by_readiness(listener: TcpListener, answer: &[u8]) {
    serve(EngineChoice::Epoll, listener, answer);
}

fn serve(choice: EngineChoice, listener: TcpListener, answer: &[u8]) {
    let selection = Selection::choose_with(choice, false).expect("the engine");
    let wake = Wake::new().expect("an eventfd");
    let core = selection.core(wake, None).expect("a core");
    let answer: Rc<[u8]> = answer.into();
    let (of, socket) = (core.clone(), core.own(listener.into()));
    let serve = move |socket, member| {
        let (core, answer) = (of.clone(), Rc::clone(&answer));
        of.spawn(async move {
            respond(core, socket, answer).await;
            drop(member);
        });
    };
    let (population, listening) = (Rc::<Population>::default(), Listening::new(1));
    core.spawn(accept_loop(
        core.clone(),
        socket,
        population,
        listening,
        limits(1024),
        serve,
        || (),
    ));
    core.run().expect("the engine goes on");
}

async fn respond(core: Core, socket: Fd, answer: Rc<[u8]>) {
    let mut receiver = Receiver::new(&core, socket.clone());
    let mut sender = Sender::new(&core, socket, RULE);
    let mut timer = Timer::new(&core);
    let mut got = 0;
    while let Ok(bytes) = poll_fn(|_| receiver.poll_next()).await {
        got += bytes.len();
        drop(bytes);
        if got < REQUEST.len() {
            continue;
        }
        let mut data = core.send_buffer();
        while got >= REQUEST.len() {
            data.extend_from_slice(&answer);
            got -= REQUEST.len();
        }
        if sender.buffer(&mut timer, data, false).await.is_err() {
            return;
        }
    }
}
