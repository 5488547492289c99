//! Baichuan 7B (Yang et al. 2023, section 2): Llama with queries, keys and values in one layer. Names are those of its own code,
//! `BaiChuanForCausalLM`.

use blocks::{Activation, Architecture, GatedFeedForward, Heads, Linear, Net, Norm, Rope, RopeSource, Stack};
use swift_sdk::prelude::*;

config! {
    /// The values of model_type that are taken.
    pub enum Kind {
        /// The only one.
        Baichuan = "baichuan",
    }
}

/// The vocabulary of the second generation, whose output projection has normed rows.
const BAICHUAN2_VOCABULARY: u64 = 125_696;

config! {
    /// Baichuan decoders with rotary positions (7B).
    pub struct Baichuan {
        /// The family.
        model_type: Kind = Kind::Baichuan,
        /// Tokens in the vocabulary.
        vocab_size: u64 = 64000,
        /// Width of the residual stream.
        hidden_size: u64 = 4096,
        /// Width of the feed-forward layer.
        intermediate_size: u64 = 11008,
        /// Number of blocks.
        num_hidden_layers: u32 = 32,
        /// Query heads.
        num_attention_heads: u64 = 32,
        /// Activation of the feed-forward layer.
        hidden_act: Activation = Activation::Silu,
        /// Added to the mean square in norms.
        rms_norm_eps: f64 = 1e-6,
        /// Longest sequence of the training.
        max_position_embeddings: u64 = 4096,
        /// The output projection is the token table.
        tie_word_embeddings: bool = false,
        /// Deviation of fresh weights.
        initializer_range: f32 = 0.02,
        /// Context of the 13B models, which have ALiBi in place of rotary positions.
        model_max_length: Option<u64> = None,
        ..
    }
}

impl Baichuan {
    fn check(&self) -> Result<()> {
        if self.model_max_length.is_some() && self.num_hidden_layers >= 40 {
            return Err(Error::config("this is a Baichuan of 13B, whose attention has ALiBi")
                .hint("Baichuan 7B, with rotary positions, is taken"));
        }
        if self.vocab_size == BAICHUAN2_VOCABULARY {
            return Err(Error::config("this is a Baichuan 2, whose output projection is normed at run time")
                .hint("Baichuan 7B of the first generation is taken"));
        }
        Heads::check(self.heads())
    }

    fn heads(&self) -> [u64; 3] {
        [self.num_attention_heads, self.num_attention_heads, self.hidden_size / self.num_attention_heads.max(1)]
    }

    fn attention(&self, net: &Net, heads: &Heads, x: &Value) -> Value {
        let d = self.hidden_size;
        scope("self_attn", || {
            let [q, k, v] = heads.split(&net.linear("W_pack", x, Linear::new(d, 3 * d)));
            net.linear("o_proj", &heads.attend(net, &q, &k, &v), Linear::new(d, d))
        })
    }
}

impl Architecture for Baichuan {
    fn initializer_range(&self) -> f32 {
        self.initializer_range
    }

    fn forward(&self, net: &Net) -> Result<()> {
        self.check()?;
        let [.., head_dim] = self.heads();
        let rope = Rope::new(RopeSource { head_dim, max_positions: self.max_position_embeddings, ..RopeSource::default() })?;
        let d = self.hidden_size;
        let norm = Norm::rms(d, self.rms_norm_eps);
        let mlp = GatedFeedForward::new(d, self.intermediate_size, self.hidden_act);
        let stack = Stack::new(self.vocab_size, d, self.num_hidden_layers, norm).tied(self.tie_word_embeddings);
        stack.run(net, |net, layer, x| {
            let heads = Heads::new(layer, self.heads()).rope(&rope);
            let x = x + self.attention(&net.at("self_attn"), &heads, &net.norm("input_layernorm", x, norm));
            let fed = net.norm("post_attention_layernorm", &x, norm);
            x + mlp.apply(&net.at("mlp"), &fed)
        });
        Ok(())
    }
}

blocks::model! { "baichuan": Baichuan }
