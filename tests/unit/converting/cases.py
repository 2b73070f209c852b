"""Small configurations in the manner of each tool's own examples, and what their recipes say, worked out by hand."""

from __future__ import annotations

from typing import Any

Case = tuple[str, dict[str, Any], int, dict[str, Any], tuple[str, ...]]
"""(what it is about, the file, processes, values of the recipe by key, keys that could not be said)"""

AX = {"base_model": "org/base", "datasets": [{"path": "org/rows", "type": "chat_template"}], "learning_rate": 2e-5,
      "micro_batch_size": 2, "gradient_accumulation_steps": 4, "sequence_len": 4096}  # fmt: skip

AXOLOTL: list[Case] = [
    ("2 rows x 4 x 8 GPUs; the tool's own defaults where it is silent", AX, 8,
     {"method": "sft", "/model": "org/base", "rows_per_step": 64, "max_length": 4096, "epochs": 1.0, "held_out": 0.0,
      "schedule.kind": "cosine", "schedule.warmup_ratio": 0.03, "optimizer.betas": [0.9, 0.999],
      "data": "org/rows"}, ()),
    ("YAML 1.1 texts are numbers", {**AX, "learning_rate": "5e-5", "num_epochs": "2"}, 1,
     {"learning_rate": 5e-5, "epochs": 2.0}, ()),
    ("steps win over epochs, and turn a warm-up in steps into a share",
     {**AX, "max_steps": 200, "num_epochs": 3, "warmup_steps": 10}, 1,
     {"steps": 200, "epochs": None, "schedule.warmup_ratio": 0.05}, ()),
    ("a warm-up in steps of an unknown number", {**AX, "warmup_steps": 10, "warmup_ratio": 0.1}, 1,
     {"schedule.warmup_ratio": None}, ("warmup_steps",)),
    ("bins are no rows", {**AX, "sample_packing": True}, 1, {"rows_per_step": 8}, ("sample_packing",)),
    ("qlora and its scale",
     {**AX, "adapter": "qlora", "load_in_4bit": True, "lora_r": 32, "lora_alpha": 16, "lora_dropout": 0.05,
      "lora_target_linear": True}, 1,
     {"adapter.kind": "qlora", "adapter.bits": 4, "adapter.rank": 32, "adapter.alpha": 16.0, "adapter.dropout": 0.05,
      "adapter.targets": "all-linear"}, ()),
    ("a lora over 8 bits is a qlora; its layers are peft's choice", {**AX, "adapter": "lora", "load_in_8bit": True}, 1,
     {"adapter.kind": "qlora", "adapter.bits": 8, "adapter.targets": None, "adapter.rank": 8, "adapter.alpha": 8.0},
     ("lora_target_modules", "lora_r", "lora_alpha")),
    ("no dropout beside a reference",
     {**AX, "rl": "dpo", "rl_beta": 0.3, "adapter": "lora", "lora_r": 8, "lora_alpha": 16, "lora_dropout": 0.1,
      "lora_target_modules": ["q_proj"]}, 1,
     {"method": "dpo", "beta": 0.3, "adapter.dropout": None, "adapter.targets": ["q_proj"]}, ("lora_dropout",)),
    ("bare texts are cut into pieces", {**AX, "datasets": [{"path": "t.jsonl", "type": "completion", "field": "body"}]},
     1, {"data.format": "text", "data.columns": {"text": "body"}, "encoding.template": "raw",
         "encoding.truncation": "split"}, ()),
    ("words around an alpaca row",
     {**AX, "datasets": [{"path": "a.jsonl", "type": "alpaca", "split": "train[:100]"}]}, 1,
     {"data.format": "alpaca", "data.limit": 100}, ("datasets[0].type",)),
    ("roles and columns",
     {**AX, "datasets": [{"path": "c.jsonl", "type": "chat_template", "field_messages": "talk",
                          "message_property_mappings": {"role": "from", "content": "value"},
                          "roles": {"assistant": ["bot"]}, "roles_to_train": ["assistant", "tool"],
                          "train_on_eos": "none"}]}, 1,
     {"data.columns": {"messages": "talk"}, "data.roles": {"bot": "assistant"}, "encoding.train_roles": {"tool": True},
      "encoding.stop_token": "ignore"}, ()),
    ("orpo's weight", {**AX, "rl": "orpo", "orpo_alpha": 0.2}, 1, {"method": "orpo", "preference_weight": 0.2}, ()),
    ("simpo with the likelihood of the chosen",
     {**AX, "rl": "simpo", "rl_beta": 2.5, "simpo_gamma": 1.4, "cpo_alpha": 0.1}, 1,
     {"method": "cpo_simpo", "beta": 2.5, "gamma": 1.4, "nll_weight": 0.1}, ()),
    ("a centred reward model", {**AX, "reward_model": True, "center_rewards_coefficient": 0.01}, 1,
     {"method": "reward", "objective.centre": 0.01}, ()),
    ("completions by groups of 4; a mean over tokens",
     {**AX, "rl": "grpo", "trl": {"num_generations": 4, "max_completion_length": 128, "beta": 0.001, "epsilon": 0.1,
                                  "epsilon_high": 0.3, "reward_funcs": ["rwd.right"], "reward_weights": [2.0]}}, 2,
     {"method": "grpo", "prompts_per_step": 4, "completions_per_prompt": 4, "kl_beta": 0.001, "clip_low": 0.1,
      "clip_high": 0.3, "sampling.max_new_tokens": 128, "choices.reduction": "token_mean",
      "rewards": [{"kind": "function", "function": "rwd:right", "weight": 2.0}]}, ("trl.reward_funcs",)),
    ("a share of rows, and a number of them", {**AX, "val_set_size": 500}, 1, {"held_out": None}, ("val_set_size",)),
    ("what is not here, and a key that nobody has", {**AX, "neftune_noise_alpha": 5, "lora_rr": 3}, 1, {},
     ("neftune_noise_alpha", "lora_rr")),
    ("half a table of groups", {**AX, "fsdp_config": {"offload_params": True}, "bf16": True, "weight_decay": 0.1,
                                "optimizer": "adamw_bnb_8bit", "gradient_checkpointing": "offload",
                                "activation_offloading": True}, 1,
     {"compute.offload": "all", "compute.offload_activations": True,
      "compute.precision": "bf16", "optimizer.weight_decay": 0.1,
      "compute.activation_checkpointing": True}, ("optimizer",)),
    ("a project of wandb switches it on, and it goes online there",
     {**AX, "wandb_project": "mine", "wandb_entity": "us", "mlflow_experiment_name": "e", "use_tensorboard": True}, 1,
     {"log.to": [{"kind": "wandb", "project": "mine", "entity": "us", "mode": "online"},
                 {"kind": "mlflow", "experiment": "e"}, "tensorboard"]}, ()),
    ("a tracker that is off, one that is offline, and one that is not here",
     {**AX, "wandb_project": "", "use_trackio": True, "use_comet": True}, 1, {"log.to": ["trackio"]}, ("use_comet",)),
    ("offline as it is there", {**AX, "wandb_project": "p", "wandb_mode": "offline"}, 1,
     {"log.to": [{"kind": "wandb", "project": "p", "mode": "offline"}]}, ()),
    ("disabled as it is there", {**AX, "wandb_project": "p", "wandb_mode": "disabled"}, 1, {"log.to": None}, ()),
    ("one score of a reward model", {**AX, "reward_model": True, "num_labels": 1}, 1, {"method": "reward"}, ()),
    ("more scores than a reward model has", {**AX, "reward_model": True, "num_labels": 3}, 1, {}, ("num_labels",)),
]  # fmt: skip

LF = {"model_name_or_path": "org/base", "stage": "sft", "dataset": "org_rows", "cutoff_len": 1024,
      "per_device_train_batch_size": 1, "gradient_accumulation_steps": 8}  # fmt: skip
LLAMAFACTORY: list[Case] = [
    ("a LoRA of rank 8 with twice the rank as its alpha, where nothing is said", LF, 4,
     {"method": "sft", "rows_per_step": 32, "adapter.rank": 8, "adapter.alpha": 16.0, "adapter.targets": "all-linear",
      "learning_rate": 5e-5, "epochs": 3.0, "schedule.kind": "linear", "schedule.warmup_ratio": 0, "held_out": 0.0,
      "max_length": 1024, "encoding.truncation": "cut_response", "encoding.template": "chat"}, ("dataset: org_rows",)),
    ("twice the rank", {**LF, "lora_rank": 32}, 1, {"adapter.alpha": 64.0}, ("dataset: org_rows",)),
    ("all weights", {**LF, "finetuning_type": "full", "lora_rank": 8}, 1, {"adapter": None}, ("dataset: org_rows",)),
    ("simpo", {**LF, "stage": "dpo", "pref_loss": "simpo", "pref_beta": 2.0, "simpo_gamma": 1.0}, 1,
     {"method": "simpo", "beta": 2.0, "gamma": 1.0}, ("dataset: org_rows",)),
    ("orpo's beta is its weight", {**LF, "stage": "dpo", "pref_loss": "orpo", "pref_beta": 0.2}, 1,
     {"method": "orpo", "preference_weight": 0.2}, ("dataset: org_rows",)),
    ("the likelihood of the chosen beside dpo", {**LF, "stage": "dpo", "pref_ftx": 0.5}, 1,
     {"method": "dpo_nll", "beta": 0.1, "nll_weight": 0.5}, ("dataset: org_rows",)),
    ("smoothing is cdpo", {**LF, "stage": "dpo", "dpo_label_smoothing": 0.1}, 1,
     {"method": "cdpo", "label_smoothing": 0.1}, ("dataset: org_rows",)),
    ("kto", {**LF, "stage": "kto", "kto_chosen_weight": 1.5, "pref_beta": 0.2}, 1,
     {"method": "kto", "beta": 0.2, "desirable_weight": 1.5}, ("dataset: org_rows",)),
    ("pretraining", {**LF, "stage": "pt"}, 1, {"encoding.template": "raw", "encoding.truncation": "split"},
     ("dataset: org_rows",)),
    ("prompts train", {**LF, "train_on_prompt": True}, 1, {"encoding.train_on": "all"}, ("dataset: org_rows",)),
    ("the last answer alone", {**LF, "mask_history": True}, 1, {"encoding.train_on": "last_assistant"},
     ("dataset: org_rows",)),
    ("oft, 4 bits, galore", {**LF, "finetuning_type": "oft", "oft_block_size": 64, "use_galore": True}, 1,
     {"adapter.kind": "oft", "adapter.block_size": 64}, ("dataset: org_rows", "use_galore")),
    ("4 bits", {**LF, "quantization_bit": 4, "lora_rank": 16, "lora_alpha": 8, "lora_target": "q_proj, v_proj"}, 1,
     {"adapter.kind": "qlora", "adapter.bits": 4, "adapter.rank": 16, "adapter.alpha": 8.0,
      "adapter.targets": ["q_proj", "v_proj"]}, ("dataset: org_rows",)),
    ("ppo and its judge", {**LF, "stage": "ppo", "reward_model": "judge"}, 1,
     {"method": "ppo", "rewards": [{"kind": "reward_model", "model": "judge"}], "prompts_per_step": 8,
      "completions_per_prompt": 1}, ("dataset: org_rows", "ppo_epochs")),
    ("trackers by their names", {**LF, "report_to": ["wandb", "swanlab"]}, 1,
     {"log.to": [{"kind": "wandb", "mode": "online"}]}, ("dataset: org_rows", "report_to")),
]  # fmt: skip

HF = {"model_name_or_path": "org/base", "dataset_name": "org/rows", "per_device_train_batch_size": 4}
TRL: list[Case] = [
    ("dpo: sums, a linear schedule, three epochs",
     {**HF, "f_divergence_type": "reverse_kl", "activation_offloading": True}, 2,
     {"method": "dpo", "compute.offload_activations": True,
      "beta": 0.1, "rows_per_step": 8, "learning_rate": 1e-6, "epochs": 3.0, "schedule.kind": "linear",
      "schedule.warmup_ratio": 0, "max_length": 1024, "held_out": 0.0, "adapter": None}, ()),
    ("ipo is the mean per token here too", {**HF, "loss_type": "ipo", "precompute_ref_log_probs": True}, 1,
     {"method": "ipo", "beta": 0.1}, ()),
    ("two losses with weights", {**HF, "loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.25]}, 1,
     {"method": "dpo_nll", "nll_weight": 0.25}, ()),
    ("a mix", {**HF, "loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0], "beta": 0.3}, 1,
     {"method": "mix", "losses": [{"loss": "dpo", "weight": 0.8, "parameters": {"beta": 0.3}},
                                  {"loss": "bco_pair", "weight": 0.2, "parameters": {"beta": 0.3}},
                                  {"loss": "sft", "weight": 1.0}]}, ()),
    ("smoothing is epsilon of exo", {**HF, "loss_type": "exo_pair", "label_smoothing": 0.01, "loss_weights": None}, 1,
     {"method": "exo_pair", "label_epsilon": 0.01}, ()),
    ("a divergence", {**HF, "f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.3}, 1,
     {"method": "dpo_alpha", "divergence_alpha": 0.3}, ()),
    ("what sft trains on is said by nobody", {**HF, "completion_only_loss": None}, 1,
     {"method": "sft", "learning_rate": 2e-5, "encoding.truncation": "cut_response"}, ("assistant_only_loss",)),
    ("assistants alone", {**HF, "assistant_only_loss": True}, 1, {"encoding.train_on": "assistant_only"}, ()),
    ("a test split", {**HF, "assistant_only_loss": True, "eval_strategy": "steps", "eval_steps": 20}, 1,
     {"held_out.split": "test", "log.held_out_every": 20}, ()),
    ("kto", {**HF, "desirable_weight": 1.2, "lr_scheduler_type": "constant_with_warmup", "warmup_ratio": 0.2}, 1,
     {"method": "kto", "desirable_weight": 1.2, "schedule.kind": "constant", "schedule.warmup_ratio": 0.2}, ()),
    ("constant has no warm-up there",
     {**HF, "desirable_weight": 1, "lr_scheduler_type": "constant", "warmup_ratio": 0.2}, 1,
     {"schedule.kind": "constant", "schedule.warmup_ratio": 0.0}, ()),
    ("grpo: 4 x 8 completions by 8; dapo's mean, no KL",
     {**HF, "gradient_accumulation_steps": 8, "num_generations": 8, "scale_rewards": "group",
      "reward_funcs": ["accuracy_reward"]}, 2,
     {"method": "grpo", "prompts_per_step": 8, "completions_per_prompt": 8, "kl_beta": 0.0,
      "choices.reduction": "token_mean", "rewards": [{"kind": "math"}], "sampling.max_new_tokens": 512}, ()),
    ("grpo's own mean", {**HF, "num_generations": 4, "loss_type": "grpo", "scale_rewards": True,
                         "reward_funcs": ["accuracy_reward"]}, 1, {"method": "grpo", "choices": None}, ()),
    ("dr. grpo and its constant", {**HF, "num_generations": 4, "loss_type": "dr_grpo", "scale_rewards": False,
                                   "max_completion_length": 300, "reward_funcs": ["accuracy_reward"]}, 1,
     {"method": "dr_grpo", "constant_length": 300.0}, ()),
    ("cispo's cap is of the ratio itself", {**HF, "num_generations": 4, "loss_type": "cispo", "epsilon_high": 5.0,
                                            "num_iterations": 1, "reward_funcs": ["accuracy_reward"]}, 1,
     {"method": "cispo", "clip_high": 4.0}, ()),
    ("four updates of a rollout", {**HF, "num_generations": 4, "steps_per_generation": 4, "num_iterations": 1,
                                   "reward_funcs": ["accuracy_reward"]}, 1,
     {"prompts_per_step": 4, "updates_per_rollout": 4, "prompts_per_update": 1}, ()),
    ("a cut distribution has no ratio", {**HF, "num_generations": 4, "num_iterations": 1, "top_p": 0.9,
                                         "reward_funcs": ["accuracy_reward"]}, 1, {"sampling.top_p": None}, ("top_p",)),
    ("min_lr", {**HF, "assistant_only_loss": True, "lr_scheduler_type": "cosine_with_min_lr", "learning_rate": 1e-4,
                "lr_scheduler_kwargs": {"min_lr": 1e-5}}, 1,
     {"schedule.kind": "cosine", "schedule.final_ratio": 0.1}, ()),
    ("a tracker, and the project that every saved configuration names",
     {**HF, "assistant_only_loss": True, "report_to": "trackio", "project": "huggingface"}, 1,
     {"log.to": ["trackio"]}, ()),
    ("no tracker", {**HF, "assistant_only_loss": True, "report_to": ["none"], "project": "huggingface"}, 1,
     {"log.to": None}, ()),
    ("whatever is installed", {**HF, "assistant_only_loss": True, "report_to": "all"}, 1, {"log.to": None},
     ("report_to",)),
]  # fmt: skip

SCRIPT = """set -x
MODEL="org/base"
read -r -d '' training_commands <<EOF
openrlhf.cli.{trainer} \\
   {options}
EOF
   # --logger.wandb.key [WANDB_TOKENS]
if [[ ${{1}} != "slurm" ]]; then
    deepspeed --module $training_commands
fi
"""
OPENRLHF: list[tuple[str, str, str, dict[str, Any], tuple[str, ...]]] = [
    ("the batch is of all processes; a cosine down to a tenth", "train_sft",
     "--model.model_name_or_path $MODEL --data.dataset org/rows --data.input_key question --data.output_key response "
     "--train.batch_size 256 --train.micro_batch_size 2 --data.apply_chat_template --adam.lr 5e-6 --ckpt.load_enable",
     {"method": "sft", "/model": "org/base", "rows_per_step": 256, "epochs": 2.0, "max_length": 2048,
      "schedule.kind": "cosine", "schedule.final_ratio": 0.1, "schedule.warmup_ratio": 0.03,
      "data.columns": {"prompt": "question", "completion": "response"}, "encoding.train_on": "last_assistant"}, ()),
    ("the names of older versions", "train_dpo",
     "--pretrain org/base --dataset org/pairs --train_batch_size 64 --learning_rate 5e-7 --beta 0.2 --max_len 1024 "
     "--apply_chat_template --bf16 --l2 0.1",
     {"method": "dpo", "beta": 0.2, "rows_per_step": 64, "learning_rate": 5e-7, "max_length": 1024,
      "optimizer.weight_decay": 0.1}, ()),
    ("ipo is a sum there", "train_dpo", "--model.model_name_or_path org/base --data.dataset p --model.ipo_enable "
     "--data.apply_chat_template", {"method": "ipo_sum", "beta": 0.1}, ()),
    ("likelihood of the chosen", "train_dpo", "--model.model_name_or_path org/base --data.dataset p "
     "--model.nll_loss_coef 0.5 --data.apply_chat_template", {"method": "dpo_nll", "nll_weight": 0.5}, ()),
    ("two sets with shares", "train_dpo", "--model.model_name_or_path org/base --data.dataset a,b "
     "--data.dataset_probs 0.7,0.3 --data.apply_chat_template", {"data.mixing": "weights"}, ()),
    ("margins", "train_rm", "--model.model_name_or_path org/base --data.dataset p --model.margin_loss_enable "
     "--data.apply_chat_template --ds.lora.rank 8",
     {"method": "reward", "objective.margin_scale": 1.0, "adapter.rank": 8, "adapter.alpha": 16.0}, ()),
    ("words around a prompt", "train_sft",
     "--model.model_name_or_path org/base --data.dataset p --data.max_samples 500",
     {"encoding.template": "raw", "data.limit": 500}, ("data.input_template",)),
    ("128 x 8 completions in updates of 128", "train_ppo_ray",
     "--actor.model_name_or_path org/base --reward.model_name_or_path judge --data.prompt_dataset t --data.input_key q "
     "--rollout.batch_size 128 --rollout.n_samples_per_prompt 8 --train.batch_size 128 --rollout.max_new_tokens 256 "
     "--algo.advantage.estimator group_norm --algo.kl.init_coef 1e-3 --algo.kl.use_loss --algo.kl.estimator k3 "
     "--actor.eps_clip_low_high 0.2 0.27 --algo.dynamic_filtering_enable --data.apply_chat_template",
     {"method": "grpo", "prompts_per_step": 128, "completions_per_prompt": 8, "updates_per_rollout": 8,
      "prompts_per_update": 16, "kl_beta": 0.001, "choices.kl": "k3", "choices.kl_place": "loss", "clip_low": 0.2,
      "clip_high": 0.27, "choices.groups": "resample", "choices.reduction": "token_mean",
      "rewards": [{"kind": "reward_model", "model": "judge"}]}, ()),
    ("ppo: the KL in the reward, a critic", "train_ppo_ray",
     "--actor.model_name_or_path org/base --reward.model_name_or_path judge --data.prompt_dataset t "
     "--data.apply_chat_template --critic.adam.lr 9e-6 --algo.advantage.lambd 0.9",
     {"method": "ppo", "kl_beta": 0.01, "choices.kl_place": "reward", "value_learning_rate": 9e-6, "lam": 0.9,
      "gamma": 1.0, "value_clip": 0.5, "updates_per_rollout": 8}, ()),
    ("no KL at all", "train_ppo_ray",
     "--actor.model_name_or_path org/base --reward.model_name_or_path judge --data.prompt_dataset t "
     "--algo.advantage.estimator group_norm --algo.kl.init_coef 0 --data.apply_chat_template "
     "--rollout.n_samples_per_prompt 4",
     {"choices.kl": "none", "kl_beta": None}, ()),
    ("wandb", "train_sft", "--model.model_name_or_path org/base --data.dataset p --data.apply_chat_template "
     "--logger.wandb.key k3y-0f-s0mebody --logger.wandb.project mine",
     {"log.to": [{"kind": "wandb", "project": "mine", "mode": "online"}]}, ()),
]  # fmt: skip
