//! The end of a core: nothing is freed that the kernel may still use.

use std::time::Duration;

use super::Core;
use crate::runtime::slot::SlotKey;

/// Most turns that a core takes to collect what is in flight when it stops.
const STOP_TURNS_MAX: usize = 10_000;

/// How long a core that stops waits for what it has in flight.
const STOP_MAX: Duration = Duration::from_secs(5);

/// How long it waits for notifications of zero-copy sends alone: a client that acknowledges nothing can
/// hold one back for minutes.
const STOP_NOTIFIED_MAX: Duration = Duration::from_millis(500);

impl Core {
    /// Ends every task, then cancels and collects every op. Says whether nothing is in flight any
    /// more but notifications of zero-copy sends; when anything is, the engine and its buffers are
    /// leaked, never freed under the kernel.
    pub fn shut_down(&self) -> bool {
        loop {
            // The end of one task may start another.
            let ids = self.0.tasks.borrow().ids();
            if ids.is_empty() {
                break;
            }
            for id in ids {
                let future = self.0.tasks.borrow_mut().remove(id);
                future.into_iter().for_each(|future| self.discard(future));
            }
        }
        self.close_pipes();
        self.drop_blocks();
        let begin = self.now();
        for _ in 0..STOP_TURNS_MAX {
            for key in self.unfinished() {
                self.cancel(key);
            }
            let idle = self.0.slots.borrow().len() == 0 && self.0.closer.is_empty();
            if idle && !self.0.engine.borrow().pending() {
                return true;
            }
            let elapsed = self.now().saturating_duration_since(begin);
            let notified = self.0.slots.borrow().only_notifications();
            let most = if notified {
                STOP_NOTIFIED_MAX
            } else {
                STOP_MAX
            };
            if elapsed > most || self.turn(Some(Duration::from_millis(10))).is_err() {
                break;
            }
        }
        let only_notifications = self.0.slots.borrow().only_notifications();
        self.0.engine.borrow_mut().leak();
        std::mem::forget(self.clone());
        only_notifications
    }

    fn unfinished(&self) -> Vec<SlotKey> {
        self.0.slots.borrow().unfinished()
    }
}
