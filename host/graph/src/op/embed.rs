//! Table lookup by token id.

use super::{OpRule, arity};
use crate::autodiff::Backward;
use crate::interp::{Eval, Tensor};
use crate::{Dim, Error, Graph, Result, Shape, Type};

/// Inputs `w [vocab, d]` (a parameter of any format, or a dense value) and `ids [n]`, output `[n, d]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Embed;

impl OpRule for Embed {
    fn name(&self) -> &'static str {
        "embed"
    }
    fn infer(&self, _: &Graph, inputs: &[Type]) -> Result<Vec<Type>> {
        arity(self.name(), inputs, 2)?;
        let (w, ids) = (&inputs[0], &inputs[1]);
        if w.shape.rank() != 2 || ids.shape.rank() != 1 || !ids.dtype.is_int() {
            return Err(Error::shape(self.name(), "takes a table [vocab, d] and whole-number ids [n]", inputs));
        }
        Ok(vec![Type::new(w.dtype, vec![ids.shape[0].clone(), w.shape[1].clone()])])
    }
    fn eval(&self, cx: &Eval<'_>) -> Result<Vec<Tensor>> {
        let (table, d) = (cx.input(0), cx.input(0).cols());
        let mut out = Vec::new();
        for id in cx.whole(1) {
            let row = cx.index(id, table.shape[0], "token id")?;
            out.extend_from_slice(&table.data[row * d..][..d]);
        }
        cx.one(out)
    }
    fn backward(&self, cx: &mut Backward<'_>) -> Result<()> {
        let d = cx.d_out()?;
        let vocab = cx.g.ty(cx.input(0)).shape[0].clone();
        let dw = cx.g.push(EmbedDw { vocab }, &[d, cx.input(1)])?;
        cx.add(0, dw)
    }
}

/// Gradient of the table: inputs `d_y [n, d]`, `ids [n]`, output `[vocab, d]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EmbedDw {
    /// Rows of the table.
    pub vocab: Dim,
}

impl OpRule for EmbedDw {
    fn name(&self) -> &'static str {
        "embed-dw"
    }
    fn infer(&self, _: &Graph, inputs: &[Type]) -> Result<Vec<Type>> {
        arity(self.name(), inputs, 2)?;
        let (dy, ids) = (&inputs[0], &inputs[1]);
        if dy.shape.rank() != 2 || ids.shape.rank() != 1 || dy.shape[0] != ids.shape[0] || !ids.dtype.is_int() {
            return Err(Error::shape(self.name(), "takes d_y [n, d] and ids [n]", inputs));
        }
        Ok(vec![Type::new(dy.dtype, Shape::from(vec![self.vocab.clone(), dy.shape[1].clone()]))])
    }
    fn eval(&self, cx: &Eval<'_>) -> Result<Vec<Tensor>> {
        let (dy, d) = (cx.input(0), cx.input(0).cols());
        let mut out = Tensor::zeros(cx.shape(0)?);
        for (i, id) in cx.whole(1).into_iter().enumerate() {
            let row = cx.index(id, out.shape[0], "token id")?;
            for j in 0..d {
                out.data[row * d + j] += dy.data[i * d + j];
            }
        }
        Ok(vec![out])
    }
    fn backward(&self, cx: &mut Backward<'_>) -> Result<()> {
        cx.refuse()
    }
}
