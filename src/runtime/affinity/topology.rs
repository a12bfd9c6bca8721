//! Which CPUs belong together: NUMA nodes, and threads of one physical core.
//!
//! [`Topology::order`] is pure; [`Topology::read`] reads `/sys`, or a tree that looks like it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Most CPUs that a list may name, so that a broken file costs no memory.
const CPUS_MAX: usize = 8192;

/// Most nodes, as the kernel has it (`CONFIG_NODES_SHIFT` is at most 10).
const NODES_MAX: usize = 1024;

/// Where a CPU is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    node: usize,
    /// The lowest CPU of its physical core.
    core: usize,
}

/// The places of the machine's CPUs. A CPU that isn't in it is a physical core of node 0.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Topology {
    places: BTreeMap<usize, Place>,
}

impl Topology {
    /// Reads it from a tree like `/sys/devices/system`: `node/nodeN/cpulist` and
    /// `cpu/cpuN/topology/thread_siblings_list`. What is missing or broken there is left out.
    pub fn read(root: &Path, cpus: &[usize]) -> Self {
        let list = |file: &Path| fs::read_to_string(file).ok().and_then(|it| parse_list(&it));
        let mut nodes = BTreeMap::new();
        let numbers = list(&root.join("node/online")).unwrap_or_default();
        for node in numbers.into_iter().filter(|node| *node < NODES_MAX) {
            let cpus = list(&root.join(format!("node/node{node}/cpulist"))).unwrap_or_default();
            nodes.extend(cpus.into_iter().map(|cpu| (cpu, node)));
        }
        let place = |cpu: usize| {
            let siblings = root.join(format!("cpu/cpu{cpu}/topology/thread_siblings_list"));
            let siblings = list(&siblings).unwrap_or_default();
            let core = siblings.into_iter().min().unwrap_or(cpu).min(cpu);
            let node = nodes.get(&cpu).copied().unwrap_or(0);
            (cpu, Place { node, core })
        };
        Self {
            places: cpus.iter().copied().map(place).collect(),
        }
    }

    fn place(&self, cpu: usize) -> Place {
        let alone = Place { node: 0, core: cpu };
        self.places.get(&cpu).copied().unwrap_or(alone)
    }

    /// The node of a CPU.
    pub fn node(&self, cpu: usize) -> usize {
        self.place(cpu).node
    }

    /// The allowed CPUs in the order in which threads are put on them, when `wanted` are needed.
    ///
    /// A second thread of a physical core comes after all physical cores. Where one node has a
    /// physical core for each thread, they stay there, next to their memory: on the first node that
    /// has the most of them. Otherwise threads take a CPU of each node in turn.
    pub fn order(&self, allowed: &[usize], wanted: usize) -> Vec<usize> {
        // Which of the threads of its physical core a CPU is, of those that are allowed.
        let mut seen: BTreeMap<(usize, usize), usize> = BTreeMap::new();
        let mut by_node: BTreeMap<usize, Vec<(usize, usize)>> = BTreeMap::new();
        for cpu in allowed {
            let Place { node, core } = self.place(*cpu);
            let thread = seen.entry((node, core)).or_default();
            by_node.entry(node).or_default().push((*thread, *cpu));
            *thread += 1;
        }
        let physical = |cpus: &[(usize, usize)]| cpus.iter().filter(|(it, _)| *it == 0).count();
        let most = by_node
            .values()
            .map(|cpus| physical(cpus))
            .max()
            .unwrap_or(0);
        let home = (wanted <= most)
            .then(|| by_node.iter().find(|(_, cpus)| physical(cpus) == most))
            .flatten()
            .map(|(node, _)| *node);
        // Sorted by: threads of a core, the node that has room for all, turns among the nodes.
        let mut order = Vec::with_capacity(allowed.len());
        for (node, cpus) in &by_node {
            let away = home.is_some_and(|home| home != *node);
            let mut turns: BTreeMap<usize, usize> = BTreeMap::new();
            for (thread, cpu) in cpus {
                let turn = turns.entry(*thread).or_default();
                order.push(((*thread, away, *turn, *node), *cpu));
                *turn += 1;
            }
        }
        order.sort_by_key(|(key, _)| *key);
        order.into_iter().map(|(_, cpu)| cpu).collect()
    }
}

/// Reads a list of the kernel: `0-3,8`. `None` when it is none; empty lists are lists.
pub fn parse_list(text: &str) -> Option<Vec<usize>> {
    let mut numbers = Vec::new();
    for part in text.trim().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        if first > last || last >= CPUS_MAX {
            return None;
        }
        numbers.extend(first..=last);
    }
    numbers.sort_unstable();
    numbers.dedup();
    Some(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tree with these nodes, and these threads of one core.
    fn read(nodes: &[&str], siblings: &[&str]) -> Topology {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let file = root.path().join(path);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        };
        if !nodes.is_empty() {
            write("node/online", &format!("0-{}\n", nodes.len() - 1));
        }
        let mut all = Vec::new();
        for (node, cpus) in nodes.iter().enumerate() {
            write(&format!("node/node{node}/cpulist"), &format!("{cpus}\n"));
            all.extend(parse_list(cpus).unwrap());
        }
        for list in siblings {
            for cpu in parse_list(list).unwrap() {
                write(
                    &format!("cpu/cpu{cpu}/topology/thread_siblings_list"),
                    &format!("{list}\n"),
                );
            }
        }
        all.sort_unstable();
        Topology::read(root.path(), &all)
    }

    #[test]
    fn cores_stay_on_one_node_while_it_has_room_and_threads_of_a_core_come_last() {
        // Two nodes, each with two physical cores of two threads, numbered as servers number them.
        let two = read(&["0-1,4-5", "2-3,6-7"], &["0,4", "1,5", "2,6", "3,7"]);
        let all: Vec<usize> = (0..8).collect();
        let cases: [(&[usize], usize, &[usize]); 7] = [
            (&all, 1, &[0, 1, 2, 3, 4, 5, 6, 7]),
            (&all, 2, &[0, 1, 2, 3, 4, 5, 6, 7]),
            // Not all fit on a node: one of each in turn.
            (&all, 3, &[0, 2, 1, 3, 4, 6, 5, 7]),
            (&all, 8, &[0, 2, 1, 3, 4, 6, 5, 7]),
            // A cpuset that has more of the second node.
            (&[1, 2, 3, 6], 2, &[2, 3, 1, 6]),
            // Only second threads are allowed: each is the first of its core then.
            (&[4, 5], 2, &[4, 5]),
            (&[], 1, &[]),
        ];
        for (allowed, wanted, order) in cases {
            assert_eq!(two.order(allowed, wanted), order, "{allowed:?}, {wanted}");
        }
        assert_eq!((two.node(5), two.node(6)), (0, 1));
    }

    #[test]
    fn threads_that_are_numbered_side_by_side() {
        let laptop = read(&["0-5"], &["0-1", "2-3", "4", "5"]);
        assert_eq!(laptop.order(&[0, 1, 2, 3, 4, 5], 4), [0, 2, 4, 5, 1, 3]);
    }

    #[test]
    fn a_machine_that_tells_nothing_or_nonsense_has_one_node_of_cores() {
        let none = Topology::read(Path::new("/nonexistent"), &[0, 1, 3]);
        assert_eq!(none.order(&[0, 1, 3], 2), [0, 1, 3]);
        assert_eq!(Topology::default().order(&[7, 9], 1), [7, 9]);
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("node/node0")).unwrap();
        fs::write(root.path().join("node/online"), "0-99999999999\n").unwrap();
        fs::write(root.path().join("node/node0/cpulist"), "\u{fffd}").unwrap();
        let broken = Topology::read(root.path(), &[2, 4]);
        assert_eq!(broken.order(&[2, 4], 1), [2, 4]);
    }

    #[test]
    fn lists_of_the_kernel() {
        let cases: [(&str, Option<&[usize]>); 8] = [
            ("0-3,8\n", Some(&[0, 1, 2, 3, 8])),
            ("\n", Some(&[])),
            ("5", Some(&[5])),
            ("3,1,1-2", Some(&[1, 2, 3])),
            ("3-1", None),
            ("a", None),
            ("0-9999999", None),
            ("-1", None),
        ];
        for (text, list) in cases {
            assert_eq!(parse_list(text).as_deref(), list, "{text:?}");
        }
    }
}
