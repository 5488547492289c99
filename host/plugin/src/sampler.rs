//! Sampler plugins: a transform of logits, traced once, and a matcher, which says after every token what may come next.
//!
//! The interface has both, and most plugins have one. A plugin without a transform gives the logits back as they are; one without a
//! matcher refuses `matcher.open` with the code `unsupported-op`. The transform runs on the trace engine and is then the host's; the
//! matcher is called with all rows at once on the data engine, bounded by the clock.

use swift_graph::{DType, Graph, NodeId, Shape, Type};
use wasmtime::component::ResourceAny;

use crate::bindings::guest;
use crate::bindings::tensor::types::ErrorCode;
use crate::decl::{Kind, code_name};
use crate::engine::Plane;
use crate::guest::Guest;
use crate::load::Plugin;
use crate::trace::{Loan, Role};
use crate::tuner::expect;
use crate::{Error, Result};

/// An instance of a sampler plugin, for tracing.
pub struct SamplerGuest {
    guest: Guest,
    typed: guest::sampler::Guest,
}

/// A matcher at work. It has an instance of its own.
pub struct MatcherGuest {
    guest: Guest,
    typed: guest::sampler::Guest,
    matcher: ResourceAny,
    vocab: usize,
}

impl Plugin {
    /// A sampler guest.
    ///
    /// # Errors
    /// When the plugin is no sampler or cannot be instantiated.
    pub fn sampler(&self) -> Result<SamplerGuest> {
        let (guest, typed) =
            self.guest(Kind::Sampler, guest::sampler::GuestIndices::new, |i, store, instance| i.load(store, instance))?;
        Ok(SamplerGuest { guest, typed })
    }

    /// A matcher over a vocabulary; `None` when the sampler has none. `vocab[i]` are the bytes of token i, none where the token is no
    /// text: those end an answer.
    ///
    /// # Errors
    /// When the plugin is no sampler, cannot be instantiated, or refuses the configuration.
    pub fn matcher(&self, config: &str, vocab: &[Vec<u8>]) -> Result<Option<MatcherGuest>> {
        const FUNCTION: &str = "sampler.matcher.open";
        let (mut guest, typed) =
            self.guest_on(Plane::Data, Kind::Sampler, guest::sampler::GuestIndices::new, |i, store, instance| {
                i.load(store, instance)
            })?;
        let opened = guest.ask(FUNCTION, |store| typed.matcher().call_open(store, config, vocab));
        match opened {
            Ok(matcher) => Ok(Some(MatcherGuest { guest, typed, matcher, vocab: vocab.len() })),
            Err(Error::Plugin { code, .. }) if code == code_name(ErrorCode::UnsupportedOp) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl SamplerGuest {
    /// Appends the transform of `logits`, f32 `[rows, vocab]`; the same node when there is none.
    ///
    /// # Errors
    /// When the plugin fails or answers with another shape. The graph is then fit for dropping only.
    pub fn trace(&mut self, g: &mut Graph, logits: NodeId, config: &str) -> Result<NodeId> {
        let typed = &self.typed;
        let want = Type::new(DType::F32, Shape::clone(&g.ty(logits).shape));
        self.guest.traced(
            "sampler.trace",
            g,
            Loan::new(Role::Values, false),
            |store, lent| typed.call_trace(store, lent.root(), lent.value(logits), config),
            |trace, value| expect(trace, &value, &want, "the logits"),
        )
    }

    /// Name of the plugin.
    pub fn plugin(&self) -> &str {
        self.guest.plugin()
    }
}

impl MatcherGuest {
    /// What may follow in each row: one bit a token, lowest first; an empty mask allows everything. `last` are the tokens that the row
    /// took since it was asked about; with none the row begins anew.
    ///
    /// # Errors
    /// When the plugin fails, or answers with masks of another number or size.
    pub fn advance(&mut self, rows: &[u32], last: &[Vec<u32>]) -> Result<Vec<Vec<u32>>> {
        const FUNCTION: &str = "sampler.matcher.advance";
        let (typed, matcher) = (&self.typed, self.matcher);
        let masks = self.guest.ask(FUNCTION, |store| typed.matcher().call_advance(store, matcher, rows, last))?;
        self.check(rows, &masks).map_err(|message| self.guest.answer(FUNCTION, message))?;
        Ok(masks)
    }

    fn check(&self, rows: &[u32], masks: &[Vec<u32>]) -> Result<(), String> {
        if masks.len() != rows.len() {
            return Err(format!("{} masks for {} rows", masks.len(), rows.len()));
        }
        let words = self.vocab.div_ceil(32);
        match masks.iter().find(|mask| !mask.is_empty() && mask.len() != words) {
            Some(mask) => Err(format!("a mask of {} words; {} tokens take {words}", mask.len(), self.vocab)),
            None => Ok(()),
        }
    }

    /// Name of the plugin.
    pub fn plugin(&self) -> &str {
        self.guest.plugin()
    }
}
