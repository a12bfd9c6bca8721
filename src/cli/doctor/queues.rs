//! Judges how the receive queues of network cards fit the CPUs that serve: a queue whose interrupts all
//! come on one CPU makes that one the bound of all.
//!
//! [`Card::read`] asks `/sys` and `/proc`, or a tree that looks like them; [`judge`] is pure.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use super::findings::{Finding, Level};
use crate::runtime::affinity::{Cpus, parse_list};

/// Most cards, queues of a card and interrupts that are looked at.
const ENTRIES_MAX: usize = 256;

/// Most commands for one finding: the others look alike.
const COMMANDS_MAX: usize = 16;

/// A network card, as far as receiving goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Card {
    /// `eth0`.
    pub(super) name: String,
    /// Receive queues: which CPUs take packets from each after its interrupt (RPS); empty for none.
    pub(super) queues: Vec<BTreeSet<usize>>,
    /// Interrupts of its receive queues, each with the CPUs on which they come.
    pub(super) interrupts: Vec<(u32, BTreeSet<usize>)>,
    /// The NUMA node that it hangs on, where there are several.
    pub(super) node: Option<usize>,
}

/// Names of directory entries, sorted, so that what is told is told in order.
fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<String> = names.take(ENTRIES_MAX).collect();
    names.sort_by_key(|name| (name.len(), name.clone()));
    names
}

/// Reads a mask of CPUs: `ff`, `00000003,00000000`.
fn parse_mask(text: &str) -> BTreeSet<usize> {
    let digits = text.trim().chars().rev().filter(|c| *c != ',');
    digits
        .take(2048)
        .enumerate()
        .filter_map(|(nth, digit)| Some((nth, digit.to_digit(16)?)))
        .flat_map(|(nth, digit)| {
            (0..4)
                .filter(move |bit| digit >> bit & 1 == 1)
                .map(move |bit| 4 * nth + bit)
        })
        .collect()
}

/// A mask of these CPUs, as the kernel reads it.
fn mask(cpus: &BTreeSet<usize>) -> String {
    let words = cpus.last().map_or(1, |last| last / 32 + 1);
    let word = |word: usize| {
        let bits = cpus.iter().filter(|cpu| **cpu / 32 == word);
        bits.fold(0_u32, |bits, cpu| bits | 1 << (cpu % 32))
    };
    let mut shown = format!("{:x}", word(words - 1));
    for index in (0..words - 1).rev() {
        shown.push_str(&format!(",{:08x}", word(index)));
    }
    shown
}

/// CPUs as a list: `0-3,8`.
fn list(cpus: &BTreeSet<usize>) -> String {
    let mut parts: Vec<(usize, usize)> = Vec::new();
    for cpu in cpus {
        match parts.last_mut() {
            Some((_, last)) if *last + 1 == *cpu => *last = *cpu,
            _ => parts.push((*cpu, *cpu)),
        }
    }
    let part = |(first, last): (usize, usize)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    };
    parts.into_iter().map(part).collect::<Vec<_>>().join(",")
}

impl Card {
    /// Reads all cards that are devices from a tree with `sys` and `proc`; bridges, tunnels and loopback
    /// have no interrupts.
    pub(super) fn read_all(root: &Path) -> Vec<Self> {
        let net = root.join("sys/class/net");
        let interrupts = fs::read_to_string(root.join("proc/interrupts")).unwrap_or_default();
        let cards = names(&net).into_iter();
        cards
            .filter(|name| net.join(name).join("device").exists())
            .map(|name| Self::read(root, &name, &interrupts))
            .collect()
    }

    fn read(root: &Path, name: &str, interrupts: &str) -> Self {
        let card = root.join("sys/class/net").join(name);
        let queues = names(&card.join("queues"));
        let queues = queues.iter().filter(|queue| queue.starts_with("rx-"));
        let rps = |queue: &String| {
            let mask = fs::read_to_string(card.join("queues").join(queue).join("rps_cpus"));
            mask.map(|mask| parse_mask(&mask)).unwrap_or_default()
        };
        let device = card.join("device");
        // A virtual card hangs on a bus of its own, below the device that has the interrupts.
        let mut numbers = names(&device.join("msi_irqs"));
        if numbers.is_empty() {
            let parent = device.canonicalize().ok();
            let parent = parent.as_deref().and_then(Path::parent);
            numbers = parent.map_or_else(Vec::new, |it| names(&it.join("msi_irqs")));
        }
        let numbers = numbers.iter().filter_map(|number| number.parse().ok());
        let receives = |number: &u32| receives(interrupts, *number, name);
        let place = |number: u32| {
            let irq = root.join(format!("proc/irq/{number}"));
            let read = |file: &str| parse_list(&fs::read_to_string(irq.join(file)).ok()?);
            let cpus = read("effective_affinity_list").filter(|cpus| !cpus.is_empty());
            let cpus = cpus
                .or_else(|| read("smp_affinity_list"))
                .unwrap_or_default();
            (number, cpus.into_iter().collect())
        };
        let node = fs::read_to_string(device.join("numa_node")).ok();
        Self {
            name: name.to_owned(),
            queues: queues.map(rps).collect(),
            interrupts: numbers.filter(receives).map(place).collect(),
            node: node.and_then(|node| node.trim().parse().ok()),
        }
    }
}

/// Whether an interrupt is one of a receive queue, by its name in `/proc/interrupts`.
fn receives(interrupts: &str, number: u32, card: &str) -> bool {
    let mut lines = interrupts.lines();
    let line = lines.find_map(|line| line.trim_start().strip_prefix(&format!("{number}:")));
    let name = line.and_then(|line| line.split_whitespace().last());
    let name = name.unwrap_or_default().to_ascii_lowercase();
    let is = |word: &str| name.contains(word);
    (is("rx") || is("input") || is("comp") || is(card)) && !is("output") && !is("-tx-")
}

/// Findings about the cards of a machine whose cores run on these CPUs; none with one CPU, where nothing
/// can be spread.
pub(super) fn judge(cards: &[Card], cores: &BTreeSet<usize>, cpus: &Cpus) -> Vec<Finding> {
    if cores.len() < 2 {
        return Vec::new();
    }
    let cards = cards.iter().filter(|card| !card.queues.is_empty());
    cards.map(|card| of_card(card, cores, cpus)).collect()
}

fn of_card(card: &Card, cores: &BTreeSet<usize>, cpus: &Cpus) -> Finding {
    let (name, queues) = (&card.name, card.queues.len());
    let on: BTreeSet<usize> = card
        .interrupts
        .iter()
        .flat_map(|(_, on)| on)
        .copied()
        .collect();
    let rps: BTreeSet<usize> = card.queues.iter().flatten().copied().collect();
    let plural = if queues == 1 { "queue" } else { "queues" };
    let text = format!(
        "{name} has {queues} receive {plural}, interrupts on CPU {}, RPS {}; cores on CPU {}",
        if on.is_empty() {
            "?".to_owned()
        } else {
            list(&on)
        },
        if rps.is_empty() {
            "off".to_owned()
        } else {
            format!("to {}", list(&rps))
        },
        list(cores),
    );
    let warn = |why: &str, mut mend: Vec<String>| {
        mend.truncate(COMMANDS_MAX);
        finding(Level::Warn, format!("{text}: {why}"), mend)
    };
    let nodes: BTreeSet<usize> = cores.iter().map(|cpu| cpus.topology.node(*cpu)).collect();
    if let Some(node) = card.node.filter(|node| !nodes.contains(node))
        && cpus
            .allowed
            .iter()
            .any(|cpu| cpus.topology.node(*cpu) == node)
    {
        let near = cpus
            .allowed
            .iter()
            .filter(|cpu| cpus.topology.node(**cpu) == node);
        let near: BTreeSet<usize> = near.copied().collect();
        return warn(
            &format!("it hangs on node {node}, and every packet crosses to the cores' node"),
            vec![format!(
                "AllowedCPUs={}  (in the unit's [Service])",
                list(&near)
            )],
        );
    }
    if queues < cores.len() && rps.len() <= 1 {
        let to = mask(cores);
        let set = |nth: usize| {
            format!("echo {to} | sudo tee /sys/class/net/{name}/queues/rx-{nth}/rps_cpus")
        };
        let more = format!(
            "sudo ethtool -L {name} combined {}  (if the card has more queues)",
            cores.len()
        );
        return warn(
            "what is received is worked on by fewer CPUs than serve",
            std::iter::once(more).chain((0..queues).map(set)).collect(),
        );
    }
    let wanted = queues.min(cores.len());
    if queues >= cores.len() && !on.is_empty() && on.len() < wanted && rps.len() <= 1 {
        let set = |((number, _), cpu): (&(u32, BTreeSet<usize>), &usize)| {
            format!("echo {cpu} | sudo tee /proc/irq/{number}/smp_affinity_list")
        };
        let stop = "sudo systemctl stop irqbalance  (if it runs: it would undo this)".to_owned();
        let each = card.interrupts.iter().zip(cores.iter().cycle()).map(set);
        return warn(
            "several queues interrupt the same CPU",
            std::iter::once(stop).chain(each).collect(),
        );
    }
    finding(Level::Ok, text, Vec::new())
}

fn finding(level: Level, text: String, mend: Vec<String>) -> Finding {
    Finding {
        name: "queues",
        level,
        text,
        mend,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::affinity::Topology;

    fn set(cpus: &[usize]) -> BTreeSet<usize> {
        cpus.iter().copied().collect()
    }

    fn cpus(count: usize) -> Cpus {
        Cpus {
            allowed: (0..count).collect(),
            ..Cpus::default()
        }
    }

    #[test]
    fn masks_and_lists() {
        for (cpus, shown) in [
            (&[0, 1][..], "3"),
            (&[0, 5], "21"),
            (&[32, 63], "80000001,00000000"),
            (&[1, 64], "1,00000000,00000002"),
        ] {
            assert_eq!(mask(&set(cpus)), shown);
            assert_eq!(parse_mask(&format!("{shown}\n")), set(cpus));
        }
        assert_eq!(parse_mask("x"), set(&[]));
        assert_eq!(list(&set(&[0, 1, 2, 5, 7, 8])), "0-2,5,7-8");
    }

    #[test]
    fn a_card_is_read_with_the_interrupts_of_its_receive_queues() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let file = root.path().join(path);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        };
        let at = |path: &str| root.path().join(path);
        write("sys/devices/pci/virtio2/name", "");
        for number in [37, 38, 39] {
            write(&format!("sys/devices/pci/msi_irqs/{number}"), "msix\n");
            write(&format!("proc/irq/{number}/effective_affinity_list"), "1\n");
        }
        write("sys/class/net/eth0/queues/rx-0/rps_cpus", "3\n");
        write("sys/class/net/eth0/queues/tx-0/xps_cpus", "0\n");
        write("sys/class/net/lo/queues/rx-0/rps_cpus", "0\n");
        std::os::unix::fs::symlink(
            at("sys/devices/pci/virtio2"),
            at("sys/class/net/eth0/device"),
        )
        .unwrap();
        write(
            "proc/interrupts",
            "      CPU0 CPU1\n 37:  0 0 PCI-MSIX 0-edge virtio2-config\n \
             38:  0 9 PCI-MSIX 1-edge virtio2-input.0\n 39: 1 0 PCI-MSIX 2-edge virtio2-output.0\n",
        );
        let expected = Card {
            name: "eth0".into(),
            queues: vec![set(&[0, 1])],
            interrupts: vec![(38, set(&[1]))],
            node: None,
        };
        assert_eq!(Card::read_all(root.path()), [expected]);
        assert_eq!(Card::read_all(Path::new("/nonexistent")), []);
    }

    #[test]
    fn few_queues_one_cpu_for_all_and_another_node_are_told_with_commands() {
        let cores = set(&[0, 1, 2, 3]);
        let card = |queues: usize, on: &[usize]| Card {
            name: "eth0".into(),
            queues: vec![BTreeSet::new(); queues],
            interrupts: (40..).zip(on.iter().map(|cpu| set(&[*cpu]))).collect(),
            node: Some(0),
        };
        let one = judge(&[card(1, &[2])], &cores, &cpus(4));
        assert_eq!(one[0].level, Level::Warn);
        assert!(one[0].mend[0].contains("ethtool -L eth0 combined 4"));
        let rps = "echo f | sudo tee /sys/class/net/eth0/queues/rx-0/rps_cpus";
        assert_eq!(one[0].mend[1], rps);
        let same = judge(&[card(4, &[2, 2, 2, 2])], &cores, &cpus(4));
        assert_eq!(
            same[0].mend[2],
            "echo 1 | sudo tee /proc/irq/41/smp_affinity_list"
        );
        for well in [
            card(4, &[0, 1, 2, 3]),
            Card {
                queues: vec![cores.clone()],
                ..card(1, &[0])
            },
        ] {
            let found = judge(&[well], &cores, &cpus(4));
            assert_eq!(
                (found[0].level, found[0].mend.len()),
                (Level::Ok, 0),
                "{found:?}"
            );
        }
        // Nothing can be spread over one CPU, and what has no queues receives nothing.
        assert_eq!(judge(&[card(1, &[2])], &set(&[0]), &cpus(1)), []);
        assert_eq!(judge(&[card(0, &[])], &cores, &cpus(4)), []);

        let root = tempfile::tempdir().unwrap();
        for (node, list) in [(0, "0-1\n"), (1, "2-3\n")] {
            let directory = root.path().join(format!("node/node{node}"));
            fs::create_dir_all(&directory).unwrap();
            fs::write(directory.join("cpulist"), list).unwrap();
        }
        fs::write(root.path().join("node/online"), "0-1\n").unwrap();
        let far = Card {
            node: Some(1),
            ..card(2, &[2, 3])
        };
        let two_nodes = Cpus {
            topology: Topology::read(root.path(), &[0, 1, 2, 3]),
            ..cpus(4)
        };
        let found = judge(&[far], &set(&[0, 1]), &two_nodes);
        assert!(found[0].text.contains("hangs on node 1"), "{found:?}");
        assert!(found[0].mend[0].starts_with("AllowedCPUs=2-3"), "{found:?}");
    }
}
