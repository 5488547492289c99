//! Elementwise programs that the fusion pass makes: several elementwise nodes run tile by tile, intermediate values never in memory.

use super::{BinaryOp, OpRule, UnaryOp, count};
use crate::autodiff::Backward;
use crate::interp::{Eval, Tensor};
use crate::{DType, Dim, Error, Float, Graph, Result, Shape, Type};

/// How an input covers the program's `[rows, cols]` space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Span {
    /// `rows * cols` elements.
    Full,
    /// One element a row.
    Row,
    /// One element a column.
    Col,
    /// One element.
    Scalar,
}

/// Instruction `i` writes register `i`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Instr {
    /// An input.
    Load(u16),
    /// A number.
    Const(Float),
    /// A function of a register.
    Unary(UnaryOp, u16),
    /// A function of two registers.
    Binary(BinaryOp, u16, u16),
    /// Register `.1` where register `.0` is not zero, else register `.2`.
    Select(u16, u16, u16),
}

/// The program. All outputs have one shape; `rows * cols` is its number of elements, `cols` the product of its trailing
/// `col_axes` axes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Fused {
    /// Shape of all outputs.
    pub shape: Shape,
    /// How many trailing axes make up a row of the program's space.
    pub col_axes: usize,
    /// Instructions in order.
    pub instrs: Vec<Instr>,
    /// How each input covers the space.
    pub spans: Vec<Span>,
    /// Registers that are stored, with their element types; never empty.
    pub outputs: Vec<(u16, DType)>,
}

impl Fused {
    /// Rows and columns of the program's space.
    ///
    /// # Errors
    /// When a product overflows.
    pub fn space(&self) -> Result<(Dim, Dim)> {
        let rank = self.shape.rank();
        let split = rank - self.col_axes;
        Ok((self.shape.product(0..split)?, self.shape.product(split..rank)?))
    }
}

impl OpRule for Fused {
    fn name(&self) -> &'static str {
        "fused"
    }
    fn infer(&self, _: &Graph, inputs: &[Type]) -> Result<Vec<Type>> {
        if self.col_axes > self.shape.rank() || self.outputs.is_empty() || self.spans.len() != inputs.len() {
            return Err(Error::attr(self.name(), "program does not fit its inputs or shape"));
        }
        let (rows, cols) = self.space()?;
        for (ty, span) in inputs.iter().zip(&self.spans) {
            let want = match span {
                Span::Full => rows.mul(&cols)?,
                Span::Row => rows.clone(),
                Span::Col => cols.clone(),
                Span::Scalar => Dim::fixed(1),
            };
            if ty.shape.elements()? != want {
                return Err(Error::shape(self.name(), format!("an input spans {want} elements"), inputs));
            }
        }
        for (i, instr) in self.instrs.iter().enumerate() {
            let before = |r: u16| usize::from(r) < i;
            let fine = match *instr {
                Instr::Load(k) => usize::from(k) < inputs.len(),
                Instr::Const(_) => true,
                Instr::Unary(_, a) => before(a),
                Instr::Binary(_, a, b) => before(a) && before(b),
                Instr::Select(c, a, b) => before(c) && before(a) && before(b),
            };
            if !fine {
                return Err(Error::attr(self.name(), format!("instruction {i} reads what is not there")));
            }
        }
        if self.outputs.iter().any(|(r, _)| usize::from(*r) >= self.instrs.len()) {
            return Err(Error::attr(self.name(), "an output names no instruction"));
        }
        Ok(self.outputs.iter().map(|(_, dtype)| Type::new(*dtype, self.shape.clone())).collect())
    }
    fn eval(&self, cx: &Eval<'_>) -> Result<Vec<Tensor>> {
        let (rows, cols) = self.space()?;
        let (rows, cols) = (cx.dim(&rows)?, cx.dim(&cols)?);
        let mut outputs = vec![Vec::with_capacity(rows * cols); self.outputs.len()];
        let mut registers = vec![0.0; self.instrs.len()];
        for i in 0..rows * cols {
            for (r, instr) in self.instrs.iter().enumerate() {
                let reg = |k: u16| registers[usize::from(k)];
                registers[r] = match *instr {
                    Instr::Load(k) => {
                        let at = match self.spans[usize::from(k)] {
                            Span::Full => i,
                            Span::Row => i / cols,
                            Span::Col => i % cols,
                            Span::Scalar => 0,
                        };
                        cx.input(usize::from(k)).data[at]
                    }
                    Instr::Const(c) => c.0,
                    Instr::Unary(f, a) => f.eval(reg(a)),
                    Instr::Binary(f, a, b) => f.eval(reg(a), reg(b)),
                    Instr::Select(c, a, b) => reg(if reg(c) != 0.0 { a } else { b }),
                };
            }
            for (out, (register, _)) in outputs.iter_mut().zip(&self.outputs) {
                out.push(registers[usize::from(*register)]);
            }
        }
        outputs.into_iter().enumerate().map(|(k, data)| Ok(Tensor::new(cx.shape(k)?, data))).collect()
    }
    fn backward(&self, cx: &mut Backward<'_>) -> Result<()> {
        cx.refuse()
    }

    fn flops(&self, _: &[Type], _: &[Type]) -> Result<Dim> {
        let work = self.instrs.iter().filter(|i| !matches!(i, Instr::Load(_) | Instr::Const(_))).count();
        count(work as u64, self.shape.iter())
    }
}
