//! Fixed buffers of a core: how many there may be, taking one, giving unused ones back to the system.

use super::Core;
use crate::runtime::buf::fixed::FixedBuf;

impl Core {
    /// Allows at most `max` fixed buffers (64 in any case) of `bytes` each, a multiple of 4096. At first
    /// none is allowed. The size stays as it is while there are any.
    pub fn allow_fixed(&self, max: u16, bytes: usize) {
        self.0.fixed.allow(max, bytes);
    }

    /// Leaves new fixed buffers unregistered: plain memory, which counts against no limit.
    pub fn keep_fixed_plain(&self, plain: bool) {
        self.0.fixed.keep_plain(plain);
    }

    /// Bytes of a fixed buffer; 0 while none is allowed.
    pub fn fixed_bytes(&self) -> usize {
        match self.0.fixed.max() {
            0 => 0,
            _ => self.0.fixed.size(),
        }
    }

    /// A fixed buffer, made and registered if need be; `None` when all that may be are held. Nobody waits
    /// for one: what it was to be used for is done without.
    pub fn fixed_buffer(&self) -> Option<FixedBuf> {
        let engine = &self.0.engine;
        let register = |memory: &mut _| engine.borrow_mut().register_fixed(memory);
        self.0.fixed.take(register)
    }

    /// Gives the memory of fixed buffers that nobody holds back to the system.
    pub fn release_fixed(&self) {
        let mut engine = self.0.engine.borrow_mut();
        self.0.fixed.release(|memory| engine.forget_fixed(memory));
    }

    /// How many fixed buffers there are, and how many of them are held.
    pub fn fixed_usage(&self) -> (usize, usize) {
        (usize::from(self.0.fixed.made()), self.0.fixed.held())
    }
}
