//! The access log of one core, tied to its clock and its tasks: lines are pushed where a response
//! ends, and a task of the core's own hands them to the sink in time.
//!
//! The task sleeps while there is nothing to flush, so that an idle core is never woken.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};

use super::access_log::{Format, LogBuffer, RETRY_INTERVAL_MS, Record};
use super::sink::SinkHandle;
use crate::runtime::executor::Core;
use crate::runtime::future::Timer;
use crate::runtime::task::TaskId;

/// The lines of one core and the sink that they go to.
pub struct CoreLog {
    core: Core,
    buffer: RefCell<LogBuffer>,
    sink: SinkHandle,
    /// Time zero of the buffer's milliseconds.
    epoch: Instant,
    /// The task that flushes, while it sleeps without a deadline.
    sleeper: Cell<Option<TaskId>>,
}

impl CoreLog {
    /// An empty log. Nothing leaves it unless [`Self::keep_flushed`] runs as a task.
    pub fn new(core: &Core, format: Format, sink: SinkHandle) -> Rc<Self> {
        Rc::new(Self {
            core: core.clone(),
            buffer: RefCell::new(LogBuffer::new(format)),
            sink,
            epoch: core.now(),
            sleeper: Cell::new(None),
        })
    }

    /// Appends the line of a request, and hands a batch that is full to the sink. Never waits: lines
    /// beyond the bound are dropped and counted, see [`LogBuffer::push`].
    pub fn push(&self, record: &Record<'_>) {
        let now = self.core.now();
        self.buffer.borrow_mut().push(record, self.ms(now));
        self.flush_if_due(now);
        if let Some(task) = self.sleeper.take() {
            self.core.wake_task(task);
        }
    }

    /// Hands what waits to the sink, when a batch is full or a line has waited for a second.
    pub fn flush_if_due(&self, now: Instant) {
        if self.buffer.borrow().should_flush(self.ms(now)) {
            self.flush(now);
        }
    }

    /// When [`Self::flush_if_due`] is to be called next; `None` while nothing waits.
    pub fn next_due(&self) -> Option<Instant> {
        let due_ms = self.buffer.borrow().next_flush_ms()?;
        Some(self.epoch + Duration::from_millis(due_ms))
    }

    /// Hands everything that waits to the sink now. Says whether nothing is left.
    pub fn flush(&self, now: Instant) -> bool {
        let mut buffer = self.buffer.borrow_mut();
        let Some(batch) = buffer.take_batch() else {
            return true;
        };
        match self.sink.try_submit(batch) {
            // Lines that were dropped may have found no room to be told of.
            Ok(()) => buffer.next_flush_ms().is_none(),
            Err(batch) => {
                buffer.give_back(batch, self.ms(now));
                false
            }
        }
    }

    /// Flushes in time, for ever: the body of a task.
    pub async fn keep_flushed(self: Rc<Self>) {
        let mut timer = Timer::new(&self.core);
        loop {
            match self.next_due() {
                Some(due) => {
                    timer.set(due);
                    timer.expired().await;
                }
                None => self.pushed().await,
            }
            self.flush_if_due(self.core.now());
        }
    }

    /// Hands everything to the sink, trying again until `deadline`. Says whether nothing is left.
    pub async fn drain(&self, deadline: Instant) -> bool {
        let mut timer = Timer::new(&self.core);
        loop {
            let now = self.core.now();
            if self.flush(now) {
                return true;
            }
            if now >= deadline {
                return false;
            }
            timer.set(deadline.min(now + Duration::from_millis(RETRY_INTERVAL_MS)));
            timer.expired().await;
        }
    }

    /// Waits until a line waits.
    async fn pushed(&self) {
        poll_fn(|_| {
            if self.next_due().is_some() {
                return Poll::Ready(());
            }
            self.sleeper.set(Some(self.core.current_task()));
            Poll::Pending
        })
        .await;
    }

    fn ms(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.epoch).as_millis() as u64
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read};

    use super::*;
    use crate::http::types::{Status, Version};
    use crate::observability::sink::Sink;
    use crate::runtime::engine::caps::{EngineChoice, Selection};
    use crate::runtime::mailbox::Wake;

    const RECORD: Record<'static> = Record {
        remote: None,
        time_unix: 971_186_136,
        method: b"GET",
        target: b"/",
        version: Version::Http11,
        status: Status(200),
        body_bytes: 0,
        referer: None,
        user_agent: None,
        host: None,
        scheme: "http",
        client_subject: None,
        duration_us: 0,
        received: 0,
        upstream: None,
    };

    fn core() -> Core {
        let selection = Selection::choose(EngineChoice::Epoll).unwrap();
        selection.core(Wake::new().unwrap(), None).unwrap()
    }

    #[test]
    fn a_line_leaves_within_a_second_and_an_idle_log_arms_no_timer() {
        let core = core();
        let (reader, writer) = std::io::pipe().unwrap();
        let mut sink = Sink::start_on(writer.into(), "pipe".to_owned()).unwrap();
        let log = CoreLog::new(&core, Format::Common, sink.handle());
        core.spawn(log.clone().keep_flushed());
        core.turn(Some(Duration::ZERO)).unwrap();
        assert_eq!(core.usage().timers, 0);

        log.push(&RECORD);
        let pushed = core.now();
        assert!(log.next_due().unwrap() <= pushed + Duration::from_secs(1));
        core.run_until(|| log.next_due().is_none()).unwrap();
        assert!(core.now() <= pushed + Duration::from_secs(5));
        let mut line = String::new();
        let mut reader = BufReader::new(reader);
        reader.read_line(&mut line).unwrap();
        assert!(line.contains("\"GET / HTTP/1.1\" 200"), "{line}");
        core.turn(Some(Duration::ZERO)).unwrap();
        assert_eq!(core.usage().timers, 0);

        log.push(&RECORD);
        assert!(log.flush(core.now()));
        assert!(sink.close(Duration::from_secs(20)));
        let mut rest = String::new();
        reader.read_to_string(&mut rest).unwrap();
        assert_eq!(rest.lines().count(), 1);
        assert!(core.shut_down());
    }

    #[test]
    fn a_drain_gives_up_at_its_deadline_when_the_sink_takes_nothing() {
        let core = core();
        let (_reader, writer) = std::io::pipe().unwrap();
        let mut sink = Sink::start_on(writer.into(), "pipe".to_owned()).unwrap();
        let log = CoreLog::new(&core, Format::Common, sink.handle());
        assert!(sink.close(Duration::from_secs(20)));
        log.push(&RECORD);
        let drained = Rc::new(Cell::new(None));
        let (told, draining) = (drained.clone(), log.clone());
        let deadline = core.now() + Duration::from_millis(20);
        core.spawn(async move { told.set(Some(draining.drain(deadline).await)) });
        core.run().unwrap();
        assert_eq!(drained.get(), Some(false));
        assert!(core.now() >= deadline);
        assert!(log.next_due().is_some(), "the line is still there");
    }
}
