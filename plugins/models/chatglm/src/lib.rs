//! ChatGLM 2 and 3 and the first GLM-4 (Du et al. 2022; Team GLM 2024, section 2.2) under the names of their own code,
//! `ChatGLMForConditionalGeneration`: multi-query attention in one fused layer, half of each head turns, neighbours together.

use blocks::{Activation, Architecture, GatedFeedForward, Heads, Linear, Net, Norm, Rope, RopeParameters, RopeSource, Stack};
use swift_sdk::prelude::*;

config! {
    /// The values of model_type that are taken.
    pub enum Kind {
        /// The only one.
        ChatGlm = "chatglm",
    }
}

config! {
    /// ChatGLM 2, 3 and GLM-4 decoders.
    pub struct ChatGlm {
        /// The family.
        model_type: Kind = Kind::ChatGlm,
        /// Tokens in the vocabulary, padding included.
        padded_vocab_size: u64 = 65024,
        /// Width of the residual stream.
        hidden_size: u64 = 4096,
        /// Width of the feed-forward layer.
        ffn_hidden_size: u64 = 13696,
        /// Number of blocks.
        num_layers: u32 = 28,
        /// Query heads.
        num_attention_heads: u64 = 32,
        /// Size of a head.
        kv_channels: u64 = 128,
        /// Whether query heads share keys and values.
        multi_query_attention: bool = false,
        /// Key and value heads, where they are shared.
        multi_query_group_num: u64 = 1,
        /// Must be true; layer norms were never released.
        rmsnorm: bool = true,
        /// Must be false.
        apply_residual_connection_post_layernorm: bool = false,
        /// Must be true.
        post_layer_norm: bool = true,
        /// Added to the mean square in norms.
        layernorm_epsilon: f64 = 1e-5,
        /// Biases in the feed-forward layer and after attention.
        add_bias_linear: bool = false,
        /// Biases of queries, keys and values.
        add_qkv_bias: bool = false,
        /// Longest sequence of the training.
        seq_length: u64 = 2048,
        /// Factor of the rotary base 10000.
        rope_ratio: f64 = 1.0,
        /// The output projection is the token table.
        tie_word_embeddings: bool = false,
        /// Deviation of fresh weights.
        initializer_range: f32 = 0.02,
        ..
    }
}

impl ChatGlm {
    fn check(&self) -> Result<()> {
        if !self.rmsnorm || self.apply_residual_connection_post_layernorm || !self.post_layer_norm {
            return Err(Error::config(
                "`rmsnorm` and `post_layer_norm` must be true and the residual connection before the norm",
            )
            .hint("the first ChatGLM-6B is another architecture; ChatGLM 2, 3 and GLM-4 are taken"));
        }
        Heads::check(self.heads())
    }

    fn heads(&self) -> [u64; 3] {
        let heads = self.num_attention_heads;
        [heads, if self.multi_query_attention { self.multi_query_group_num } else { heads }, self.kv_channels]
    }

    fn rope(&self) -> Result<Rope> {
        let half = RopeParameters { partial_rotary_factor: Some(0.5), ..RopeParameters::default() };
        let source = RopeSource {
            parameters: Some(&half),
            theta: Some(10_000.0 * self.rope_ratio),
            head_dim: self.kv_channels,
            max_positions: self.seq_length,
            ..RopeSource::default()
        };
        Ok(Rope::new(source)?.interleaved())
    }

    fn attention(&self, net: &Net, heads: &Heads, x: &Value) -> Value {
        let (d, bias) = (self.hidden_size, self.add_bias_linear || self.add_qkv_bias);
        scope("self_attention", || {
            let width = heads.d_query() + 2 * heads.d_key();
            let [q, k, v] = heads.split(&net.linear("query_key_value", x, Linear::new(d, width).bias(bias)));
            net.linear("dense", &heads.attend(net, &q, &k, &v), Linear::new(heads.d_query(), d).bias(self.add_bias_linear))
        })
    }
}

impl Architecture for ChatGlm {
    fn initializer_range(&self) -> f32 {
        self.initializer_range
    }

    fn forward(&self, net: &Net) -> Result<()> {
        self.check()?;
        let rope = self.rope()?;
        let d = self.hidden_size;
        let norm = Norm::rms(d, self.layernorm_epsilon);
        let mlp =
            GatedFeedForward { bias: self.add_bias_linear, ..GatedFeedForward::new(d, self.ffn_hidden_size, Activation::Silu) };
        let stack = Stack {
            embedding: "transformer.embedding.word_embeddings",
            blocks: "transformer.encoder.layers",
            norm: ("transformer.encoder.final_layernorm", norm),
            head: "transformer.output_layer",
            ..Stack::new(self.padded_vocab_size, d, self.num_layers, norm)
        }
        .tied(self.tie_word_embeddings);
        stack.run(net, |net, layer, x| {
            let heads = Heads::new(layer, self.heads()).rope(&rope);
            let x = x + self.attention(&net.at("self_attention"), &heads, &net.norm("input_layernorm", x, norm));
            let fed = net.norm("post_attention_layernorm", &x, norm);
            x + mlp.apply_fused(&net.at("mlp"), &fed, ["dense_h_to_4h", "dense_4h_to_h"])
        });
        Ok(())
    }
}

blocks::model! { "chatglm": ChatGlm }
