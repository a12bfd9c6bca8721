//! What `beltway status` tells of the memory of a worker.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use super::status::bytes;

/// The memory of one worker against its limit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MemoryStatus {
    /// Bytes that it may use.
    pub limit_bytes: u64,
    /// Where that number comes from, in words.
    pub limit_source: String,
    /// Bytes that it used when it began to serve.
    pub base_bytes: u64,
    /// Bytes that it uses, those included.
    pub used_bytes: u64,
    /// What is given up at the moment, in words; `enough` when it is nothing.
    pub level: String,
    /// What it uses, by category: each with at least one byte, in the order of the documentation.
    pub categories: Vec<CategoryStatus>,
}

/// One category of memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CategoryStatus {
    /// Its name.
    pub name: String,
    /// Bytes in use.
    pub bytes: u64,
}

impl MemoryStatus {
    /// Adds to a category.
    pub(in crate::supervisor) fn add(&mut self, name: &str, bytes: u64) {
        match self.categories.iter_mut().find(|it| it.name == name) {
            Some(known) => known.bytes += bytes,
            None if bytes == 0 => {}
            None => self.categories.push(CategoryStatus {
                name: name.to_owned(),
                bytes,
            }),
        }
    }

    /// Two lines for people; none where a worker has told nothing.
    pub(super) fn text(&self, text: &mut String) {
        if self.limit_bytes == 0 {
            return;
        }
        let _ = writeln!(
            text,
            "    memory    {} of {} ({}): {}",
            bytes(self.used_bytes),
            bytes(self.limit_bytes),
            self.limit_source,
            self.level
        );
        let categories = self.categories.iter();
        let categories: Vec<String> = categories
            .map(|category| format!("{} {}", category.name, bytes(category.bytes)))
            .collect();
        if !categories.is_empty() {
            let _ = writeln!(text, "              {}", categories.join(", "));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_and_by_what_is_told_in_two_lines() {
        let mut memory = MemoryStatus {
            limit_bytes: 256 << 20,
            limit_source: "memory_limit".to_owned(),
            base_bytes: 8 << 20,
            used_bytes: 20 << 20,
            level: "enough".to_owned(),
            ..MemoryStatus::default()
        };
        memory.add("requests", 1 << 20);
        memory.add("files", 0);
        memory.add("requests", 2 << 20);
        memory.add("files", 1 << 10);
        let mut text = String::new();
        memory.text(&mut text);
        insta::assert_snapshot!(text, @r"
            memory    20.0 MiB of 256.0 MiB (memory_limit): enough
                      requests 3.0 MiB, files 1.0 KiB
        ");
        let mut text = String::new();
        MemoryStatus::default().text(&mut text);
        assert_eq!(text, "");
    }
}
