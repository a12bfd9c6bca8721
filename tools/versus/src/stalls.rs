//! What Beltway tells of its stalls: turns of a core that were long, and why.

use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Turns of all cores of a server since its start, or in a measurement.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stalls {
    /// Above 2 ms.
    pub all: u64,
    /// Above 15 ms.
    pub long: u64,
    /// Of all: a call waited.
    pub waited: u64,
    /// Of all: the core worked.
    pub worked: u64,
    /// Of all: others had the processor.
    pub preempted: u64,
    /// The longest turn since the server's start, in microseconds.
    pub longest_us: u64,
}

impl Stalls {
    /// Asks a Beltway that has this control socket.
    ///
    /// # Errors
    /// When it doesn't answer.
    pub fn ask(program: &Path, control: &Path) -> io::Result<Self> {
        let output = Command::new(program)
            .args(["status", "--json", "--control"])
            .arg(control)
            .stdin(Stdio::null())
            .output()?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(io::Error::other(said));
        }
        let status: Value = serde_json::from_slice(&output.stdout)?;
        Ok(Self::of(&status))
    }

    fn of(status: &Value) -> Self {
        let list = |value: &Value, key: &str| value[key].as_array().cloned().unwrap_or_default();
        let mut sum = Self::default();
        for generation in list(status, "generations") {
            for worker in list(&generation, "workers") {
                for core in list(&worker, "cores") {
                    let of = |key: &str| core[key].as_u64().unwrap_or(0);
                    sum = sum.and(Self {
                        all: of("stalls"),
                        long: of("stalls_long"),
                        waited: of("stalls_waited"),
                        worked: of("stalls_worked"),
                        preempted: of("stalls_preempted"),
                        longest_us: of("longest_turn_us"),
                    });
                }
            }
        }
        sum
    }

    /// Both together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            all: self.all + other.all,
            long: self.long + other.long,
            waited: self.waited + other.waited,
            worked: self.worked + other.worked,
            preempted: self.preempted + other.preempted,
            longest_us: self.longest_us.max(other.longest_us),
        }
    }

    /// What came after `before`.
    #[must_use]
    pub fn since(self, before: Self) -> Self {
        Self {
            all: self.all.saturating_sub(before.all),
            long: self.long.saturating_sub(before.long),
            waited: self.waited.saturating_sub(before.waited),
            worked: self.worked.saturating_sub(before.worked),
            preempted: self.preempted.saturating_sub(before.preempted),
            longest_us: self.longest_us,
        }
    }

    /// Those that aren't known to be the machine's fault.
    pub fn own(self) -> u64 {
        self.all.saturating_sub(self.preempted)
    }

    /// How many had which reason, and how many had none that is known.
    pub fn reasons(self) -> String {
        let known = self.waited + self.worked + self.preempted;
        let rest = self.all.saturating_sub(known);
        format!(
            "{}, {}, {}, {rest}",
            self.waited, self.worked, self.preempted
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_of_all_workers_are_added() {
        let core = serde_json::json!({
            "stalls": 5, "stalls_long": 1, "stalls_waited": 2, "stalls_worked": 1,
            "stalls_preempted": 1, "longest_turn_us": 17_000,
        });
        let other = serde_json::json!({ "stalls": 1, "longest_turn_us": 3000 });
        let status =
            serde_json::json!({ "generations": [{ "workers": [{ "cores": [core, other] }] }] });
        let stalls = Stalls::of(&status);
        assert_eq!((stalls.all, stalls.long, stalls.longest_us), (6, 1, 17_000));
        assert_eq!(stalls.own(), 5);
        assert_eq!(stalls.reasons(), "2, 1, 1, 2");
        assert_eq!(stalls.since(stalls).all, 0);
    }
}
