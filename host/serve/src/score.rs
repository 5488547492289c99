//! A model as a function of whole texts: how likely their tokens are, and what its last layer makes of them.

use swift_graph::op::{CrossEntropySpec, GatherLast, LinearCrossEntropy, ReduceOp};
use swift_graph::{Bindings, DType, Dim, Float, Graph, SymbolId, Type};
use swift_plugin::Mode;
use swift_runtime::{Device, HostTensor, Inputs, Precision, Store};

use crate::{AdaptedModel, Program, Result, ServeError};

/// Names of the output that an encoder plugin gives its last layer.
const LAST_HIDDEN: &str = "last_hidden_state";

/// Negative log-likelihoods of given tokens. In exact arithmetic logits are never kept.
pub struct Scorer {
    program: Program,
}

impl Scorer {
    /// Traces and compiles.
    ///
    /// # Errors
    /// When a plugin or the device fails, or the model has no vocabulary to predict.
    pub fn new(model: &mut AdaptedModel, device: &dyn Device, store: &mut Store, precision: Precision) -> Result<Scorer> {
        let traced = model.trace(Mode::Train)?;
        let mut g = Graph::default();
        let (head, _) = model.splice(&mut g, &traced, true, false)?;
        let targets = g.input("targets", Type::new(DType::S32, vec![Dim::symbol(SymbolId::TOKENS)]))?;
        let loss = match precision {
            Precision::Exact => {
                let spec = CrossEntropySpec {
                    label_smoothing: Float(0.0),
                    z_loss: Float(0.0),
                    softcap: head.softcap.map(|cap| Float(f64::from(cap))),
                    temperature: Float(1.0),
                };
                g.push(LinearCrossEntropy { spec, unit_grad: false }, &[head.hidden, head.weight, targets])?
            }
            // The fused loss is exact. Generation projects to the vocabulary in whole numbers, and so does this.
            Precision::Int8 => {
                let logits = g.linear(head.hidden, head.weight)?;
                let logits = crate::generate::capped(&mut g, logits, head.softcap)?;
                let tokens = Dim::symbol(SymbolId::TOKENS);
                let total = g.reduce(ReduceOp::LogSumExp, logits, &[1], false)?;
                let column = g.reshape(targets, vec![tokens.clone(), Dim::fixed(1)].into())?;
                let chosen = g.push(GatherLast, &[logits, column])?;
                let chosen = g.reshape(chosen, vec![tokens].into())?;
                g.sub(total, chosen)?
            }
        };
        g.outputs.push(("loss".into(), loss));
        let mut program = Program::compile(device, store, g)?;
        program.main.set_precision(precision);
        program.refresh(store)?;
        Ok(Scorer { program })
    }

    /// `-log p(token | tokens before it)` in nats for each of `tokens` from `first` on, which is at least 1.
    ///
    /// # Errors
    /// When `first` is out of range, the device fails or a token is outside of the vocabulary.
    pub fn score(&mut self, store: &mut Store, tokens: &[i32], first: usize) -> Result<Vec<f32>> {
        if first == 0 || first >= tokens.len() {
            return Err(ServeError::Request(format!("of {} tokens, none can be scored from {first} on", tokens.len())));
        }
        let n = tokens.len() - 1;
        let targets = (1..tokens.len()).map(|at| if at < first { -1 } else { tokens[at] }).collect();
        let losses = run(&mut self.program, store, &tokens[..n], Some(targets), "loss")?;
        Ok(losses.floats()?[first - 1..].to_vec())
    }
}

/// Hidden states of the last layer: of the encoder, or of the decoder after its final norm.
pub struct Embedder {
    program: Program,
}

impl Embedder {
    /// Traces and compiles.
    ///
    /// # Errors
    /// When a plugin or the device fails.
    pub fn new(model: &mut AdaptedModel, device: &dyn Device, store: &mut Store) -> Result<Embedder> {
        let mut g = Graph::default();
        let encoded = model.trace(Mode::Encode)?;
        let hidden = match encoded.outputs.iter().find(|(name, _)| name == LAST_HIDDEN) {
            Some((_, value)) => {
                let map = model.inline(&mut g, &encoded, true, false)?;
                map[value.index()]
            }
            None => {
                let traced = model.trace(Mode::Train)?;
                model.splice(&mut g, &traced, true, false)?.0.hidden
            }
        };
        g.outputs = vec![(LAST_HIDDEN.into(), hidden)];
        let mut program = Program::compile(device, store, g)?;
        program.refresh(store)?;
        Ok(Embedder { program })
    }

    /// `[tokens, d]`.
    ///
    /// # Errors
    /// When there is no token, the device fails or a token is outside of the vocabulary.
    pub fn hidden(&mut self, store: &mut Store, tokens: &[i32]) -> Result<HostTensor> {
        if tokens.is_empty() {
            return Err(ServeError::Request("a text of no tokens has no hidden state".into()));
        }
        run(&mut self.program, store, tokens, None, LAST_HIDDEN)
    }
}

/// Runs a program on one sequence.
fn run(program: &mut Program, store: &mut Store, tokens: &[i32], targets: Option<Vec<i32>>, output: &str) -> Result<HostTensor> {
    let n = tokens.len();
    let bindings = Bindings::new().with(SymbolId::TOKENS, n as u64).with(SymbolId::SEQUENCES, 1);
    let mut inputs = Inputs::default();
    inputs.set("ids", HostTensor::i32([n], tokens.to_vec()));
    inputs.set("positions", HostTensor::i32([n], (0..n as i32).collect()));
    inputs.set("segments", HostTensor::i32([n], vec![0; n]));
    if let Some(targets) = targets {
        inputs.set("targets", HostTensor::i32([n], targets));
    }
    Ok(program.main.run(store, &bindings, &inputs)?.take(output)?)
}
