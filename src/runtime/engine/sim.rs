//! Simulated engine.
#![allow(missing_docs, clippy::missing_docs_in_private_items)]
use super::Event;
use super::syscall::FileStat;
use crate::runtime::buf::BufPool;
use crate::runtime::fd::Closing;
use crate::runtime::fd::Fd;
use crate::runtime::op::{Job, Op, OpenRequest};
use crate::runtime::slot::{SlotKey, SlotTable};
use rustix::io::Errno;
use std::any::Any;
use std::ffi::CStr;
use std::rc::Rc;
use std::time::{Duration, Instant};
pub struct Sim(std::convert::Infallible);
impl Sim {
    pub(crate) fn start(&mut self, _: SlotKey, _: &mut Op) {
        match self.0 {}
    }
    pub(crate) fn cancel(&mut self, _: SlotKey, _: &Op) {
        match self.0 {}
    }
    pub(crate) fn refuse(&mut self, _: Event) {
        match self.0 {}
    }
    pub(crate) fn close(&mut self, _: Closing) {
        match self.0 {}
    }
    pub(crate) fn turn(
        &mut self,
        _: Option<Duration>,
        _: &mut SlotTable,
        _: &Rc<BufPool>,
        _: &mut Vec<Event>,
    ) -> Result<(), Errno> {
        match self.0 {}
    }
    pub(crate) fn take_woken(&mut self) -> bool {
        match self.0 {}
    }
    pub(crate) fn pending(&self) -> bool {
        match self.0 {}
    }
    pub(crate) fn now(&self) -> Instant {
        match self.0 {}
    }
    pub(crate) fn offload(&mut self, _: SlotKey, _: Job) {
        match self.0 {}
    }
    pub(crate) fn finished_job(&mut self) -> Option<(SlotKey, Option<Box<dyn Any + Send>>)> {
        match self.0 {}
    }
    pub(crate) fn send_now(&mut self, _: &Fd, _: &[u8]) -> Result<usize, Errno> {
        match self.0 {}
    }
    pub(crate) fn send_file(
        &mut self,
        _: &Fd,
        _: &Fd,
        _: &mut u64,
        _: usize,
    ) -> Result<usize, Errno> {
        match self.0 {}
    }
    pub(crate) fn read_resident(&mut self, _: &Fd, _: &mut [u8], _: u64) -> Result<usize, Errno> {
        match self.0 {}
    }
    pub(crate) fn stat(&mut self, _: &Fd) -> Result<FileStat, Errno> {
        match self.0 {}
    }
    pub(crate) fn stat_at(&mut self, _: &CStr) -> Result<FileStat, Errno> {
        match self.0 {}
    }
    pub(crate) fn open(&mut self, _: &OpenRequest) -> Result<u32, Errno> {
        match self.0 {}
    }
    pub(crate) fn shut_down_write(&mut self, _: &Fd) -> Result<(), Errno> {
        match self.0 {}
    }
    pub(crate) fn reset_on_close(&mut self, _: &Fd) -> Result<(), Errno> {
        match self.0 {}
    }
}
