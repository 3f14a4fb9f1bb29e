"""What headstart does not change of transformers' Trainer: model cards, uploads, hyperparameter search.

These functions of the library work on any object with the attributes of a Trainer, and are handed this one.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import transformers
from transformers.trainer_utils import BestRun

from headstart.drop_in.checkpoints import Checkpoints

__all__ = ["HubAndSearch"]

_Library: Any = transformers.Trainer
# Files of a checkpoint that are no part of a model.
_OF_CHECKPOINT = ("headstart_state.json", "manifest.json", "optimizer.safetensors", "trainer_state.json")


class HubAndSearch(Checkpoints):
    """Hands over to the library."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write a draft of a model card; see `transformers.Trainer.create_model_card`."""
        _Library.create_model_card(self, *args, **kwargs)

    def push_to_hub(self, *args: Any, **kwargs: Any) -> Any:
        """Upload model and tokenizer; see `transformers.Trainer.push_to_hub`."""
        return _Library.push_to_hub(self, *args, **kwargs)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Make the repository that is uploaded to; see `transformers.Trainer.init_hf_repo`."""
        _Library.init_hf_repo(self, token, private)

    def hyperparameter_search(self, *args: Any, **kwargs: Any) -> BestRun | list[BestRun]:
        """Search hyperparameters, with Optuna by default; see `transformers.Trainer.hyperparameter_search`."""
        best: BestRun | list[BestRun] = _Library.hyperparameter_search(self, *args, **kwargs)
        return best

    def call_model_init(self, trial: Any = None) -> Any:
        """Make a model with `model_init`."""
        return _Library.call_model_init(self, trial)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Estimate the floating-point operations of a forward and a backward pass."""
        return int(_Library.floating_point_ops(self, inputs))

    def store_flos(self) -> None:
        """Add the operations since the last time to the state."""
        self.current_flos = float(self.current_flos)  # of one type in all processes, also where one had no rows
        _Library.store_flos(self)

    def set_initial_training_values(self, args: transformers.TrainingArguments, dataloader: Any) -> Any:
        """Count epochs, steps and rows of a training; see `transformers.Trainer.set_initial_training_values`."""
        return _Library.set_initial_training_values(self, args, dataloader)

    def get_tp_size(self) -> int:
        """Count the processes that share one layer: one."""
        return 1

    get_cp_size = get_sp_size = get_tp_size

    def _hp_search_setup(self, trial: Any) -> None:
        _Library._hp_search_setup(self, trial)

    def _report_to_hp_search(self, trial: Any, step: int, metrics: dict[str, float]) -> None:
        _Library._report_to_hp_search(self, trial, step, metrics)

    def _get_output_dir(self, trial: Any) -> str:
        return str(_Library._get_output_dir(self, trial))

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        if self.args.metric_for_best_model is not None:
            self._check_best_metric(metrics)
        return bool(_Library._determine_best_metric(self, metrics, trial))

    def _finish_current_push(self) -> None:
        _Library._finish_current_push(self)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Upload what a checkpoint has written, as the arguments say."""
        from huggingface_hub import HfApi
        from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, HubStrategy
        from transformers.utils.hub import PushInProgress

        args = self.args
        if not self.is_world_process_zero() or args.hub_strategy == HubStrategy.END:
            return
        running = getattr(self, "push_in_progress", None)
        if running is not None and not running.is_done() and not args.hub_always_push:
            return
        self.callback_handler.on_push_begin(args, self.state, self.control)
        for file in Path(checkpoint_folder).iterdir():
            if file.suffix in (".jinja", ".json", ".model", ".safetensors", ".txt") and file.name not in _OF_CHECKPOINT:
                shutil.copy(file, self._output_dir)
        message = f"Training in progress, step {self.state.global_step}"
        common: Any = {
            "repo_id": self.hub_model_id,
            "token": args.hub_token,
            "run_as_future": True,
            "revision": args.hub_revision,
        }
        ignored = ["_*", ".*", f"{PREFIX_CHECKPOINT_DIR}-*"]
        jobs: Any = [
            HfApi().upload_folder(
                folder_path=self._output_dir, commit_message=message, ignore_patterns=ignored, **common
            )
        ]
        if args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            is_last = args.hub_strategy == HubStrategy.CHECKPOINT
            jobs.append(
                HfApi().upload_folder(
                    folder_path=checkpoint_folder,
                    path_in_repo="last-checkpoint" if is_last else Path(checkpoint_folder).name,
                    commit_message=f"{message}, checkpoint",
                    **common,
                )
            )
        if running is None or running.is_done():
            self.push_in_progress = PushInProgress(jobs)
        else:
            running.jobs.extend(jobs)
