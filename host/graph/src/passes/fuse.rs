//! Elementwise fusion: neighbouring elementwise nodes of one shape become one [`Fused`] program, so that values between them
//! stay in registers.
//!
//! A group runs where its last member stood. A node joins the group of a producer only if no reader of the group lies in between,
//! so order is kept; both must be on the same side of the backward pass's border, so that forward work is not put off until its
//! inputs have to be kept for it. Members that others read are stored: a program may have several outputs. Each input covers the
//! program's `[rows, cols]` space as a whole, per row, per column or as one number; nodes that broadcast otherwise stay as they are.

use std::collections::HashMap;

use super::rewrite::{Rebuild, live, number};
use crate::op::{BinaryOp, Fused, Instr, Op, Span};
use crate::{DType, Dim, Float, Graph, NodeId, Result, Shape};

/// Longest program: the tile interpreter keeps every live register in cache. AdamW with a clipped gradient has 27 instructions, and
/// two programs would read its states twice.
const MAX_INSTRS: usize = 32;
/// Most inputs of a program.
const MAX_INPUTS: usize = 16;
/// Most stored values of a program.
const MAX_OUTPUTS: usize = 8;
/// How far, in nodes, a member may be put off.
const MAX_DISTANCE: usize = 64;
/// The same for members that share an input only.
const MAX_APART: usize = 4;

/// Fuses elementwise nodes.
///
/// # Errors
/// Never for a valid graph; rebuilding checks every node again.
pub fn fuse(g: &Graph) -> Result<Graph> {
    let (groups, group_of) = group(g);
    let live = live(g);
    let mut r = Rebuild::new(g);
    for id in g.ids() {
        if g.backward_start == Some(id) {
            r.mark_backward();
        }
        if !live[id.index()] {
            continue;
        }
        match group_of[id.index()].map(|k| &groups[k]) {
            Some(group) if group.program.computes() => {
                if group.members.last() == Some(&id) {
                    emit(g, &mut r, group)?;
                }
            }
            _ => {
                let inputs = r.inputs(id);
                let image = r.copy(id, &inputs)?;
                r.set(id, image);
            }
        }
    }
    super::dead_code(&r.finish())
}

fn emit(g: &Graph, r: &mut Rebuild<'_>, group: &Group) -> Result<()> {
    let last = group.members[group.members.len() - 1];
    let shape = g.ty(last).shape.clone();
    let col_axes = group.program.col_axes();
    let spans = group.program.inputs.iter().map(|&i| span(&g.ty(i).shape, &shape, col_axes)).collect();
    let stored: Vec<NodeId> = group.program.stored.clone();
    let outputs = stored.iter().map(|m| (group.program.registers[m], g.ty(*m).dtype)).collect();
    let inputs: Vec<NodeId> = group.program.inputs.iter().map(|&i| r.at(i)).collect();
    r.new.set_scope(g.node(last).scope);
    let node = r.new.push(Fused { shape, col_axes, instrs: group.program.instrs.clone(), spans, outputs }, &inputs)?;
    for (k, member) in stored.into_iter().enumerate() {
        let part = r.new.part(node, k as u8)?;
        r.set(member, part);
    }
    Ok(())
}

struct Group {
    members: Vec<NodeId>,
    program: Program,
}

/// Groups, and the group of each node.
fn group(g: &Graph) -> (Vec<Group>, Vec<Option<usize>>) {
    let live = live(g);
    let mut readers: Vec<Vec<NodeId>> = vec![Vec::new(); g.len()];
    for id in g.ids().filter(|id| live[id.index()]) {
        for &i in &g.node(id).inputs {
            readers[i.index()].push(id);
            // Programs load the source of a broadcast copy, not the copy.
            let source = operand(g, i);
            if source != i {
                readers[source.index()].push(id);
            }
        }
    }
    let mut kept = vec![false; g.len()];
    g.outputs.iter().for_each(|(_, id)| kept[id.index()] = true);
    g.effects.iter().for_each(|e| kept[e.value.index()] = true);
    let scene = Scene { g, readers, kept };

    let mut groups: Vec<Group> = Vec::new();
    // The last group that loads each node.
    let mut reader: HashMap<NodeId, usize> = HashMap::new();
    let mut group_of: Vec<Option<usize>> = vec![None; g.len()];
    for v in g.ids().filter(|id| live[id.index()]) {
        if !scene.fusible(v) {
            continue;
        }
        let Some(program) = scene.program(&[v]) else { continue };
        let mut joined = Group { members: vec![v], program };
        let mut producers: Vec<usize> = g.node(v).inputs.iter().filter_map(|i| group_of[i.index()]).collect();
        producers.sort_unstable();
        producers.dedup();
        // Neighbours that read the same large value read it once together.
        let shared = joined.program.inputs.iter().filter(|i| g.ty(**i).shape == g.ty(v).shape);
        let near = |k: &usize| groups[*k].members.last().is_some_and(|m| v.index() - m.index() <= MAX_APART);
        let siblings: Vec<usize> = shared.filter_map(|i| reader.get(i).copied()).filter(near).collect();
        let mut taken = Vec::new();
        // Later groups first: they are the nearest.
        for k in producers.into_iter().rev().chain(siblings) {
            if taken.contains(&k) || groups[k].members.is_empty() || !scene.can_wait(&groups[k].members, v) {
                continue;
            }
            let mut members = [groups[k].members.as_slice(), &joined.members].concat();
            members.sort_unstable();
            if let Some(program) = scene.program(&members) {
                joined = Group { members, program };
                taken.push(k);
            }
        }
        // The group keeps the first index it took; the others stay empty.
        let at = taken.first().copied().unwrap_or(groups.len());
        for &k in &taken[1.min(taken.len())..] {
            groups[k].members.clear();
        }
        joined.members.iter().for_each(|m| group_of[m.index()] = Some(at));
        joined.program.inputs.iter().for_each(|&i| {
            reader.insert(i, at);
        });
        if at == groups.len() { groups.push(joined) } else { groups[at] = joined }
    }
    (groups, group_of)
}

/// What a node reads once broadcast copies are looked through.
fn operand(g: &Graph, mut id: NodeId) -> NodeId {
    while let Op::Expand(_) = g.node(id).op {
        id = g.node(id).inputs[0];
    }
    id
}

struct Scene<'a> {
    g: &'a Graph,
    readers: Vec<Vec<NodeId>>,
    kept: Vec<bool>,
}

impl Scene<'_> {
    fn fusible(&self, id: NodeId) -> bool {
        let node = self.g.node(id);
        // Registers hold floats; booleans are 0 and 1 there. Whole numbers would lose digits.
        let fits = |dtype: DType| dtype.is_float() || dtype == DType::Bool;
        matches!(node.op, Op::Unary(_) | Op::Binary(_) | Op::Select(_) | Op::Cast(_))
            && fits(node.ty().dtype)
            && node.inputs.iter().all(|&i| fits(self.g.ty(i).dtype))
    }

    /// Whether a group may run as late as `v`: same side of the border, near, and nobody reads it before.
    fn can_wait(&self, members: &[NodeId], v: NodeId) -> bool {
        let (first, last) = (members[0], members[members.len() - 1]);
        let border = self.g.backward_start.unwrap_or(NodeId(u32::MAX));
        (first < border) == (v < border)
            && v.index() - last.index() <= MAX_DISTANCE
            && self.g.ty(last).shape == self.g.ty(v).shape
            && members.iter().all(|m| self.readers[m.index()].iter().all(|c| *c >= v || members.binary_search(c).is_ok()))
    }

    /// The program of these members in order, if it keeps to the limits and its inputs broadcast in one way.
    fn program(&self, members: &[NodeId]) -> Option<Program> {
        let g = self.g;
        let shape = &g.ty(members[members.len() - 1]).shape;
        let mut p = Program {
            instrs: Vec::new(),
            inputs: Vec::new(),
            registers: HashMap::new(),
            stored: Vec::new(),
            constants: HashMap::new(),
            // Bit `c`: `c` trailing axes may be the columns.
            splits: (1 << (shape.rank() + 1)) - 1,
        };
        for &m in members {
            let node = g.node(m);
            let regs: Vec<u16> = node.inputs.iter().map(|&i| p.read(g, i, shape)).collect();
            let register = match &node.op {
                Op::Unary(f) => p.push(Instr::Unary(f.0, regs[0])),
                Op::Binary(f) => p.push(Instr::Binary(f.0, regs[0], regs[1])),
                Op::Select(_) => p.push(Instr::Select(regs[0], regs[1], regs[2])),
                Op::Cast(c) if c.0 == DType::Bool && g.ty(node.inputs[0]).dtype != DType::Bool => {
                    let zero = p.constant(0.0);
                    p.push(Instr::Binary(BinaryOp::Ne, regs[0], zero))
                }
                _ => regs[0],
            };
            p.registers.insert(m, register);
        }
        let outside = |c: &NodeId| members.binary_search(c).is_err();
        p.stored =
            members.iter().copied().filter(|m| self.kept[m.index()] || self.readers[m.index()].iter().any(outside)).collect();
        let fits = p.instrs.len() <= MAX_INSTRS && p.inputs.len() <= MAX_INPUTS && p.stored.len() <= MAX_OUTPUTS;
        (fits && p.splits != 0 && !p.stored.is_empty()).then_some(p)
    }
}

struct Program {
    instrs: Vec<Instr>,
    /// Nodes loaded, in order.
    inputs: Vec<NodeId>,
    /// Register of each member and of each loaded node.
    registers: HashMap<NodeId, u16>,
    /// Members whose values are stored.
    stored: Vec<NodeId>,
    constants: HashMap<u64, u16>,
    splits: u32,
}

impl Program {
    fn push(&mut self, instr: Instr) -> u16 {
        self.instrs.push(instr);
        self.instrs.len() as u16 - 1
    }

    fn constant(&mut self, value: f64) -> u16 {
        if let Some(&r) = self.constants.get(&value.to_bits()) {
            return r;
        }
        let r = self.push(Instr::Const(Float(value)));
        self.constants.insert(value.to_bits(), r);
        r
    }

    fn read(&mut self, g: &Graph, id: NodeId, shape: &Shape) -> u16 {
        if let Some(&r) = self.registers.get(&id) {
            return r;
        }
        if let Some(c) = number(g, id) {
            return self.constant(c);
        }
        let source = operand(g, id);
        if let Some(&r) = self.registers.get(&source) {
            return r;
        }
        let load = self.push(Instr::Load(self.inputs.len() as u16));
        self.inputs.push(source);
        self.registers.insert(source, load);
        self.splits &= splits(&g.ty(source).shape, shape);
        load
    }

    fn computes(&self) -> bool {
        self.instrs.iter().any(|i| matches!(i, Instr::Unary(..) | Instr::Binary(..) | Instr::Select(..)))
    }

    /// One trailing axis where allowed, which makes rows of the usual `[n, d]`.
    fn col_axes(&self) -> usize {
        (1..u32::BITS).find(|c| self.splits >> c & 1 == 1).unwrap_or(0) as usize
    }
}

/// Axis `i` of `to` as `from` has it, aligned at the right.
fn aligned<'a>(from: &'a Shape, to: &Shape, i: usize, one: &'a Dim) -> &'a Dim {
    let lead = to.rank() - from.rank();
    if i < lead { one } else { &from[i - lead] }
}

/// For which numbers of column axes `from` covers `to` as a whole, per row, per column or as a scalar.
fn splits(from: &Shape, to: &Shape) -> u32 {
    let one = Dim::fixed(1);
    if from.rank() > to.rank() {
        return 0;
    }
    let rank = to.rank();
    let full = |range: std::ops::Range<usize>| range.into_iter().all(|i| aligned(from, to, i, &one) == &to[i]);
    let ones = |range: std::ops::Range<usize>| range.into_iter().all(|i| aligned(from, to, i, &one) == &one);
    if full(0..rank) || ones(0..rank) {
        return (1 << (rank + 1)) - 1;
    }
    (0..=rank)
        .filter(|c| {
            let split = rank - c;
            (full(0..split) && ones(split..rank)) || (ones(0..split) && full(split..rank))
        })
        .fold(0, |mask, c| mask | 1 << c)
}

fn span(from: &Shape, to: &Shape, col_axes: usize) -> Span {
    let one = Dim::fixed(1);
    let (rank, split) = (to.rank(), to.rank() - col_axes);
    let full = |range: std::ops::Range<usize>| range.into_iter().all(|i| aligned(from, to, i, &one) == &to[i]);
    let ones = |range: std::ops::Range<usize>| range.into_iter().all(|i| aligned(from, to, i, &one) == &one);
    if full(0..rank) {
        Span::Full
    } else if ones(0..rank) {
        Span::Scalar
    } else if full(0..split) && ones(split..rank) {
        Span::Row
    } else {
        Span::Col
    }
}
