//! Fused elementwise programs: the graph's instructions are the kernel's.

use std::sync::Arc;

use swift_graph::op::{Fused, Instr as GraphInstr, Span};
use swift_kernels::elementwise::{Broadcast, Instr, Program};

use super::Kernel;
use super::elementwise::{Elementwise, binary_op, unary_op};
use super::prepare::Prepare;
use crate::Result;

fn program(op: &Fused) -> Program {
    let instr = |i: &GraphInstr| match *i {
        GraphInstr::Load(input) => Instr::Load { input },
        GraphInstr::Const(value) => Instr::Const(value.0 as f32),
        GraphInstr::Unary(f, a) => Instr::Unary(unary_op(f), a),
        GraphInstr::Binary(f, a, b) => Instr::Binary(binary_op(f), a, b),
        GraphInstr::Select(c, a, b) => Instr::Select(c, a, b),
    };
    let span = |s: &Span| match s {
        Span::Full => Broadcast::Full,
        Span::Row => Broadcast::Row,
        Span::Col => Broadcast::Col,
        Span::Scalar => Broadcast::Scalar,
    };
    Program {
        instrs: op.instrs.iter().map(instr).collect(),
        inputs: op.spans.iter().map(span).collect(),
        outputs: op.outputs.iter().map(|(register, _)| *register).collect(),
    }
}

pub(super) fn prepare(op: &Fused, p: &mut Prepare<'_, '_>) -> Result<Kernel> {
    let (rows, cols) = op.space()?;
    let (rows, cols) = (rows.eval(p.scope.bindings)? as usize, cols.eval(p.scope.bindings)? as usize);
    let program = program(op);
    program.validate().map_err(|e| p.unsupported(e.to_string()))?;
    let mut inputs = Vec::with_capacity(op.spans.len());
    for (i, span) in op.spans.iter().enumerate() {
        let operand = if *span == Span::Full { p.input_in_place(i)? } else { p.input(i)? };
        if operand.len != program.inputs[i].len(rows, cols) {
            return Err(p.unsupported(format!("input {i} has {} elements", operand.len)));
        }
        inputs.push((operand, p.is_int(i)));
    }
    let (mut outputs, mut round) = (Vec::new(), Vec::new());
    for (i, (_, dtype)) in op.outputs.iter().enumerate() {
        let output = p.output(i)?;
        outputs.push(output);
        if dtype.is_int() {
            round.push(output);
        }
    }
    Ok(Kernel::Elementwise(Elementwise {
        program: Arc::new(program),
        rows,
        cols,
        expand: Box::new([]),
        inputs: inputs.into(),
        outputs: outputs.into(),
        round: round.into(),
    }))
}
