//! GPT-NeoX (Black et al. 2022, section 2.1) and Pythia: attention and feed-forward layer side by side, a quarter of each head turns.
//! Names are those of `GPTNeoXForCausalLM`.

use blocks::{Activation, Architecture, FeedForward, Heads, Linear, Net, Norm, Rope, RopeParameters, RopeSource, Stack};
use swift_sdk::prelude::*;

config! {
    /// The values of model_type that are taken.
    pub enum Kind {
        /// The only one.
        GptNeox = "gpt_neox",
    }
}

config! {
    /// GPT-NeoX and Pythia decoders.
    pub struct GptNeox {
        /// The family.
        model_type: Kind = Kind::GptNeox,
        /// Tokens in the vocabulary.
        vocab_size: u64 = 50432,
        /// Width of the residual stream.
        hidden_size: u64 = 6144,
        /// Width of the feed-forward layer.
        intermediate_size: u64 = 24576,
        /// Number of blocks.
        num_hidden_layers: u32 = 44,
        /// Query heads.
        num_attention_heads: u64 = 64,
        /// Activation of the feed-forward layer.
        hidden_act: Activation = Activation::Gelu,
        /// Added to the variance in norms.
        layer_norm_eps: f64 = 1e-5,
        /// Longest sequence of the training.
        max_position_embeddings: u64 = 2048,
        /// The output projection is the token table.
        tie_word_embeddings: bool = false,
        /// Deviation of fresh weights.
        initializer_range: f32 = 0.02,
        /// Attention and feed-forward layer read the same stream.
        use_parallel_residual: bool = true,
        /// Biases in attention.
        attention_bias: bool = true,
        /// Share of each head that turns, where rope_parameters does not say.
        rotary_pct: f64 = 0.25,
        /// Base of the rotary frequencies in older configurations.
        rotary_emb_base: Option<f64> = None,
        /// Base of the rotary frequencies, where rope_parameters does not say.
        rope_theta: Option<f64> = None,
        /// Rotary scaling in older configurations.
        rope_scaling: Option<RopeParameters> = None,
        /// Rotary base and scaling in newer configurations.
        rope_parameters: Option<RopeParameters> = None,
        ..
    }
}

impl GptNeox {
    fn heads(&self) -> [u64; 3] {
        [self.num_attention_heads, self.num_attention_heads, self.hidden_size / self.num_attention_heads.max(1)]
    }

    fn rope(&self) -> Result<Rope> {
        Rope::new(RopeSource {
            parameters: self.rope_parameters.as_ref(),
            scaling: self.rope_scaling.as_ref(),
            theta: self.rope_theta.or(self.rotary_emb_base),
            partial: Some(self.rotary_pct),
            head_dim: self.heads()[2],
            max_positions: self.max_position_embeddings,
            ..RopeSource::default()
        })
    }

    /// Query, key and value of a head lie together.
    fn attention(&self, net: &Net, heads: &Heads, x: &Value) -> Value {
        let (d, width) = (self.hidden_size, heads.d_query());
        scope("attention", || {
            let joined = net.linear("query_key_value", x, Linear::new(d, 3 * width).bias(self.attention_bias));
            let joined = joined.reshape((net.tokens(), heads.query, 3 * heads.size));
            let part = |i: u64| joined.slice(-1, i * heads.size, heads.size).reshape((net.tokens(), width));
            let y = heads.attend(net, &part(0), &part(1), &part(2));
            net.linear("dense", &y, Linear::new(width, d).bias(self.attention_bias))
        })
    }
}

impl Architecture for GptNeox {
    fn initializer_range(&self) -> f32 {
        self.initializer_range
    }

    fn forward(&self, net: &Net) -> Result<()> {
        Heads::check(self.heads())?;
        let rope = self.rope()?;
        let d = self.hidden_size;
        let norm = Norm::layer(d, self.layer_norm_eps);
        let mlp = FeedForward::new(d, self.intermediate_size, self.hidden_act);
        let stack = Stack {
            embedding: "gpt_neox.embed_in",
            blocks: "gpt_neox.layers",
            norm: ("gpt_neox.final_layer_norm", norm),
            head: if self.tie_word_embeddings { "gpt_neox.embed_in" } else { "embed_out" },
            ..Stack::new(self.vocab_size, d, self.num_hidden_layers, norm)
        };
        stack.run(net, |net, layer, x| {
            let heads = Heads::new(layer, self.heads()).rope(&rope);
            let attended = self.attention(&net.at("attention"), &heads, &net.norm("input_layernorm", x, norm));
            let after = x + attended;
            let fed = net.norm("post_attention_layernorm", if self.use_parallel_residual { x } else { &after }, norm);
            after + mlp.apply(&net.at("mlp"), &fed, ["dense_h_to_4h", "dense_4h_to_h"])
        });
        Ok(())
    }
}

blocks::model! { "gpt-neox": GptNeox }
