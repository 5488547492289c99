//! Mixtral (Jiang et al. 2024, section 2): Mistral with two of eight feed-forward layers for each token, chosen by softmax. Names are
//! those of `MixtralForCausalLM`.

use blocks::{Activation, Architecture, Experts, Heads, Net, Norm, Rope, RopeParameters, RopeSource, Router, Stack};
use swift_sdk::prelude::*;

config! {
    /// The values of model_type that are taken.
    pub enum Kind {
        /// The only one.
        Mixtral = "mixtral",
    }
}

config! {
    /// Mixtral decoders.
    pub struct Mixtral {
        /// The family.
        model_type: Kind = Kind::Mixtral,
        /// Tokens in the vocabulary.
        vocab_size: u64 = 32000,
        /// Width of the residual stream.
        hidden_size: u64 = 4096,
        /// Width of an expert.
        intermediate_size: u64 = 14336,
        /// Number of blocks.
        num_hidden_layers: u32 = 32,
        /// Query heads.
        num_attention_heads: u64 = 32,
        /// Key and value heads.
        num_key_value_heads: u64 = 8,
        /// Size of a head, if not hidden_size / num_attention_heads.
        head_dim: Option<u64> = None,
        /// Activation of the feed-forward layer.
        hidden_act: Activation = Activation::Silu,
        /// Added to the mean square in norms.
        rms_norm_eps: f64 = 1e-5,
        /// Longest sequence of the training.
        max_position_embeddings: u64 = 131072,
        /// The output projection is the token table.
        tie_word_embeddings: bool = false,
        /// Deviation of fresh weights.
        initializer_range: f32 = 0.02,
        /// Number of experts.
        num_local_experts: u64 = 8,
        /// Experts for each token.
        num_experts_per_tok: u32 = 2,
        /// Tokens that attention looks back on, the own one included.
        sliding_window: Option<u32> = None,
        /// Base of the rotary frequencies, where rope_parameters does not say.
        rope_theta: Option<f64> = None,
        /// Rotary scaling in older configurations.
        rope_scaling: Option<RopeParameters> = None,
        /// Rotary base and scaling in newer configurations.
        rope_parameters: Option<RopeParameters> = None,
        ..
    }
}

impl Mixtral {
    fn heads(&self) -> [u64; 3] {
        let (heads, kv_heads) = (self.num_attention_heads, self.num_key_value_heads);
        [heads, kv_heads, self.head_dim.unwrap_or(self.hidden_size / heads.max(1))]
    }

    fn rope(&self) -> Result<Rope> {
        Rope::new(RopeSource {
            parameters: self.rope_parameters.as_ref(),
            scaling: self.rope_scaling.as_ref(),
            theta: self.rope_theta,
            head_dim: self.heads()[2],
            max_positions: self.max_position_embeddings,
            ..RopeSource::default()
        })
    }
}

impl Architecture for Mixtral {
    fn initializer_range(&self) -> f32 {
        self.initializer_range
    }

    fn forward(&self, net: &Net) -> Result<()> {
        Heads::check(self.heads())?;
        let rope = self.rope()?;
        let d = self.hidden_size;
        let norm = Norm::rms(d, self.rms_norm_eps);
        let (count, chosen) = (self.num_local_experts, self.num_experts_per_tok);
        let router = Router { normalized: true, ..Router::new(count, chosen) };
        let names = ["w1", "w3", "w2"];
        let experts = Experts { count, chosen, d, d_ff: self.intermediate_size, activation: self.hidden_act, names };
        let stack = Stack::new(self.vocab_size, d, self.num_hidden_layers, norm).tied(self.tie_word_embeddings);
        stack.run(net, |net, layer, x| {
            let heads = Heads::new(layer, self.heads()).rope(&rope).window(self.sliding_window);
            let attended = net.norm("input_layernorm", x, norm);
            let x = x + heads.self_attention(&net.at("self_attn"), &attended, d, [false; 2]);
            let fed = net.norm("post_attention_layernorm", &x, norm);
            let moe = net.at("block_sparse_moe");
            x + experts.apply(&moe, &fed, &router.choose(&moe.at("gate"), &fed, d))
        });
        Ok(())
    }
}

blocks::model! { "mixtral": Mixtral }
