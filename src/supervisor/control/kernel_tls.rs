//! What `beltway status` tells of connections whose records the kernel makes.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use super::status::count;
use crate::runtime::kernel_tls::KernelTlsCounts;

/// What a core has given to the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct KernelTlsStatus {
    /// Connections at this moment.
    pub connections: u64,
    /// Connections since the worker's start.
    pub total: u64,
    /// Connections that the kernel didn't take, since the worker's start.
    pub refused: u64,
}

impl KernelTlsStatus {
    /// What a core has counted.
    pub(in crate::supervisor) fn of(counts: &KernelTlsCounts) -> Self {
        Self {
            connections: counts.open,
            total: counts.total,
            refused: counts.refused,
        }
    }

    /// Of several cores together.
    pub(super) fn sum<'c>(cores: impl Iterator<Item = &'c Self>) -> Self {
        cores.fold(Self::default(), |sum, core| Self {
            connections: sum.connections + core.connections,
            total: sum.total + core.total,
            refused: sum.refused + core.refused,
        })
    }

    /// A line: what the kernel is used for, or why it isn't, and what it does.
    pub(super) fn text(&self, means: &str, text: &mut String) {
        if means.is_empty() {
            return;
        }
        let _ = write!(text, "    ktls      {means}");
        if self.total > 0 {
            let connections = count(self.connections, "connection");
            let _ = write!(text, ": {connections}, {} in all", self.total);
        }
        if self.refused > 0 {
            let _ = write!(text, ", {} refused by the kernel", self.refused);
        }
        text.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_does_is_told() {
        let told = |status: &KernelTlsStatus, means: &str| {
            let mut text = String::new();
            status.text(means, &mut text);
            text
        };
        let none = KernelTlsStatus::default();
        assert_eq!(told(&none, ""), "", "a worker of another version");
        let off = told(&none, "off: switched off");
        assert_eq!(off, "    ktls      off: switched off\n");
        let core = KernelTlsStatus {
            connections: 1,
            total: 3,
            refused: 1,
        };
        let both = KernelTlsStatus::sum([&core, &core].into_iter());
        assert_eq!(
            told(&both, "on"),
            "    ktls      on: 2 connections, 6 in all, 2 refused by the kernel\n"
        );
    }
}
