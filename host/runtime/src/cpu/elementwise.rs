//! Elementwise ops: each is a program of one instruction, run by the same kernel as fused ones.
//!
//! The kernel knows matrices with inputs broadcast along rows or columns. Other broadcasts are expanded into scratch first.
//! Whole numbers are computed as floats, exact up to 2^24, and converted back when they are stored.

use std::sync::Arc;

use swift_graph::op::{BinaryOp, Cast, UnaryOp};
use swift_graph::{DType, Op};
use swift_kernels::elementwise::{self, Binary, Broadcast, Instr, Program, Unary};

use super::Kernel;
use super::layout::Copy;
use super::memory::{Memory, Ref};
use super::prepare::Prepare;
use crate::Result;

/// A program over a `[rows, cols]` space.
#[derive(Debug)]
pub(crate) struct Elementwise {
    pub(super) program: Arc<Program>,
    pub(super) rows: usize,
    pub(super) cols: usize,
    /// Expansions to run first.
    pub(super) expand: Box<[Copy]>,
    /// Operands, and whether they are whole numbers.
    pub(super) inputs: Box<[(Ref, bool)]>,
    pub(super) outputs: Box<[Ref]>,
    /// Outputs to convert to whole numbers.
    pub(super) round: Box<[Ref]>,
}

impl Elementwise {
    pub(super) fn run(&self, m: &Memory<'_>) -> Result<()> {
        for copy in &self.expand {
            copy.run(m)?;
        }
        let inputs: Vec<_> = self.inputs.iter().map(|&(r, int)| m.operand(r, int)).collect();
        let outputs: Vec<_> = self.outputs.iter().map(|&r| m.ptr(r)).collect();
        // SAFETY: the program was validated, and lengths and overlaps were checked when the launch was prepared.
        unsafe { elementwise::run_raw(m.pool, &self.program, self.rows, self.cols, &inputs, &outputs) };
        for &r in &self.round {
            m.pool.run_pieces(m.bits_mut(r), 1 << 14, |_, out| {
                out.iter_mut().for_each(|x| *x = (f32::from_bits(*x) as i32).cast_unsigned());
            });
        }
        Ok(())
    }
}

pub(super) fn unary_op(op: UnaryOp) -> Unary {
    match op {
        UnaryOp::Neg => Unary::Neg,
        UnaryOp::Abs => Unary::Abs,
        UnaryOp::Exp => Unary::Exp,
        UnaryOp::Log => Unary::Log,
        UnaryOp::Log1p => Unary::Log1p,
        UnaryOp::Expm1 => Unary::Expm1,
        UnaryOp::Sqrt => Unary::Sqrt,
        UnaryOp::Rsqrt => Unary::Rsqrt,
        UnaryOp::Recip => Unary::Recip,
        UnaryOp::Sin => Unary::Sin,
        UnaryOp::Cos => Unary::Cos,
        UnaryOp::Tanh => Unary::Tanh,
        UnaryOp::Sigmoid => Unary::Sigmoid,
        UnaryOp::Silu => Unary::Silu,
        UnaryOp::GeluErf => Unary::GeluErf,
        UnaryOp::GeluTanh => Unary::GeluTanh,
        UnaryOp::Relu => Unary::Relu,
        UnaryOp::Softplus => Unary::Softplus,
        UnaryOp::LogSigmoid => Unary::LogSigmoid,
        UnaryOp::Erf => Unary::Erf,
        UnaryOp::Floor => Unary::Floor,
        UnaryOp::Round => Unary::Round,
        UnaryOp::Sign => Unary::Sign,
        UnaryOp::LogicalNot => Unary::Not,
    }
}

pub(super) fn binary_op(op: BinaryOp) -> Binary {
    match op {
        BinaryOp::Add => Binary::Add,
        BinaryOp::Sub => Binary::Sub,
        BinaryOp::Mul => Binary::Mul,
        BinaryOp::Div => Binary::Div,
        BinaryOp::Pow => Binary::Pow,
        BinaryOp::Min => Binary::Min,
        BinaryOp::Max => Binary::Max,
        BinaryOp::Rem => Binary::Rem,
        BinaryOp::Eq => Binary::Eq,
        BinaryOp::Ne => Binary::Ne,
        BinaryOp::Lt => Binary::Lt,
        BinaryOp::Le => Binary::Le,
        BinaryOp::Gt => Binary::Gt,
        BinaryOp::Ge => Binary::Ge,
        BinaryOp::LogicalAnd => Binary::And,
        BinaryOp::LogicalOr => Binary::Or,
    }
}

pub(super) fn unary(op: UnaryOp, p: &mut Prepare<'_, '_>) -> Result<Kernel> {
    one_node(p, |registers| Instr::Unary(unary_op(op), registers[0]))
}

pub(super) fn binary(op: BinaryOp, p: &mut Prepare<'_, '_>) -> Result<Kernel> {
    one_node(p, |registers| Instr::Binary(binary_op(op), registers[0], registers[1]))
}

pub(super) fn select(p: &mut Prepare<'_, '_>) -> Result<Kernel> {
    one_node(p, |registers| Instr::Select(registers[0], registers[1], registers[2]))
}

pub(super) fn cast(op: &Cast, p: &mut Prepare<'_, '_>) -> Result<Kernel> {
    let from = p.scope.plan.graph.ty(p.node.inputs[0]).dtype;
    if op.0 == DType::Bool && from != DType::Bool {
        // x != 0.
        one_node_with(p, &[Instr::Const(0.0)], |registers| Instr::Binary(Binary::Ne, registers[0], registers[1]))
    } else {
        one_node(p, |registers| Instr::Unary(Unary::Copy, registers[0]))
    }
}

fn one_node(p: &mut Prepare<'_, '_>, instr: impl Fn(&[u16]) -> Instr) -> Result<Kernel> {
    one_node_with(p, &[], instr)
}

/// A program of one instruction over all inputs, then `constants`.
fn one_node_with(p: &mut Prepare<'_, '_>, constants: &[Instr], instr: impl Fn(&[u16]) -> Instr) -> Result<Kernel> {
    let out = p.out_dims(0)?;
    let mut shapes = Vec::with_capacity(p.node.inputs.len());
    for i in 0..p.node.inputs.len() {
        shapes.push(align(&p.dims(i)?, out.len()));
    }
    let split = best_split(&shapes, &out);
    let (rows, cols) = (out[..split].iter().product(), out[split..].iter().product());
    let (mut instrs, mut registers) = (Vec::new(), Vec::new());
    let (mut inputs, mut spans, mut expand) = (Vec::new(), Vec::new(), Vec::new());
    for (i, shape) in shapes.iter().enumerate() {
        registers.push(instrs.len() as u16);
        if let Op::Full(full) = &p.scope.plan.graph.node(p.node.inputs[i]).op {
            instrs.push(Instr::Const(full.value.0 as f32));
            continue;
        }
        instrs.push(Instr::Load { input: inputs.len() as u16 });
        let int = p.is_int(i);
        match span(shape, &out, split) {
            Some(Broadcast::Full) => {
                spans.push(Broadcast::Full);
                inputs.push((p.input_in_place(i)?, int));
            }
            Some(broadcast) => {
                spans.push(broadcast);
                inputs.push((p.input(i)?, int));
            }
            None => {
                let from = p.input(i)?;
                let to = p.scratch(out.iter().product());
                expand.push(Copy::expand(p, shape, &out, from, to)?);
                spans.push(Broadcast::Full);
                inputs.push((to, int));
            }
        }
    }
    for &constant in constants {
        registers.push(instrs.len() as u16);
        instrs.push(constant);
    }
    instrs.push(instr(&registers));
    let program = Program { outputs: vec![instrs.len() as u16 - 1], instrs, inputs: spans };
    let output = p.output(0)?;
    let round = if p.node.ty().dtype.is_int() { vec![output] } else { Vec::new() };
    Ok(Kernel::Elementwise(Elementwise {
        program: Arc::new(program),
        rows,
        cols,
        expand: expand.into(),
        inputs: inputs.into(),
        outputs: Box::new([output]),
        round: round.into(),
    }))
}

/// `target += value`.
pub(super) fn accumulate(target: Ref, value: Ref) -> Kernel {
    let instrs = vec![Instr::Load { input: 0 }, Instr::Load { input: 1 }, Instr::Binary(Binary::Add, 0, 1)];
    let program = Program { instrs, inputs: vec![Broadcast::Full; 2], outputs: vec![2] };
    Kernel::Elementwise(Elementwise {
        program: Arc::new(program),
        rows: 1,
        cols: target.len,
        expand: Box::new([]),
        inputs: Box::new([(target, false), (value, false)]),
        outputs: Box::new([target]),
        round: Box::new([]),
    })
}

/// Sizes with leading ones up to `rank`.
fn align(dims: &[usize], rank: usize) -> Vec<usize> {
    let mut aligned = vec![1; rank - dims.len()];
    aligned.extend(dims);
    aligned
}

/// How an input of aligned sizes covers the space when the first `split` axes are its rows.
fn span(shape: &[usize], out: &[usize], split: usize) -> Option<Broadcast> {
    let one = |dims: &[usize]| dims.iter().all(|&d| d == 1);
    let (rows, cols) = shape.split_at(split);
    match (rows == &out[..split], cols == &out[split..]) {
        (true, true) => Some(Broadcast::Full),
        _ if one(shape) => Some(Broadcast::Scalar),
        (true, false) if one(cols) => Some(Broadcast::Row),
        (false, true) if one(rows) => Some(Broadcast::Col),
        _ => None,
    }
}

/// The split with the fewest inputs to expand.
fn best_split(shapes: &[Vec<usize>], out: &[usize]) -> usize {
    let expanded = |split: usize| shapes.iter().filter(|s| span(s, out, split).is_none()).count();
    (0..=out.len()).min_by_key(|&split| expanded(split)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broadcasts_become_rows_and_columns() {
        let out = [2, 3, 4];
        let split = |shapes: &[&[usize]]| {
            let shapes: Vec<_> = shapes.iter().map(|s| align(s, 3)).collect();
            let split = best_split(&shapes, &out);
            (split, shapes.iter().map(|s| span(s, &out, split)).collect::<Vec<_>>())
        };
        use Broadcast::*;
        assert_eq!(split(&[&[2, 3, 4], &[]]).1, [Some(Full), Some(Scalar)]);
        assert_eq!(split(&[&[2, 3, 4], &[4]]).1, [Some(Full), Some(Col)]);
        assert_eq!(split(&[&[3, 4], &[2, 1, 1]]), (1, vec![Some(Col), Some(Row)]));
        assert_eq!(split(&[&[2, 3, 4], &[2, 1, 4]]).1, [Some(Full), None]);
    }
}
