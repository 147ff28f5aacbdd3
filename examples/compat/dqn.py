"""Deep Q-learning: an iterable dataset that plays as it is read, a target network, and no validation.

The world is a corridor of eight cells. The agent begins in the first and is paid at the last.
"""

import json
import random
from collections import deque, namedtuple

import lightning.pytorch as pl
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torch.utils.data.dataset import IterableDataset

Experience = namedtuple("Experience", ["state", "action", "reward", "done", "new_state"])
N_CELLS = 8


class Corridor:
    def reset(self):
        self.cell, self.age = 0, 0
        return self.observe()

    def observe(self):
        state = torch.zeros(N_CELLS)
        state[self.cell] = 1.0
        return state

    def step(self, action):
        self.age += 1
        self.cell = max(0, min(N_CELLS - 1, self.cell + (1 if action == 1 else -1)))
        is_there = self.cell == N_CELLS - 1
        return self.observe(), 1.0 if is_there else -0.01, is_there or self.age >= 40


class ReplayBuffer:
    def __init__(self, capacity):
        self.buffer = deque(maxlen=capacity)

    def __len__(self):
        return len(self.buffer)

    def append(self, experience):
        self.buffer.append(experience)

    def sample(self, n):
        return random.sample(list(self.buffer), n)


class PlayedDataset(IterableDataset):
    def __init__(self, buffer, sample_size):
        self.buffer, self.sample_size = buffer, sample_size

    def __iter__(self):
        yield from self.buffer.sample(self.sample_size)


class Agent:
    def __init__(self, env, buffer):
        self.env, self.buffer = env, buffer
        self.reset()

    def reset(self):
        self.state = self.env.reset()

    @torch.no_grad()
    def play_step(self, net, epsilon, device):
        if random.random() < epsilon:
            action = random.randint(0, 1)
        else:
            action = int(net(self.state.unsqueeze(0).to(device)).argmax(1))
        new_state, reward, done = self.env.step(action)
        self.buffer.append(Experience(self.state, action, reward, done, new_state))
        self.state = new_state
        if done:
            self.reset()
        return reward, done


class DQN(pl.LightningModule):
    def __init__(self, batch_size=16, lr=5e-3, gamma=0.95, sync_rate=20, replay_size=400, warm_start=200, samples=64):
        super().__init__()
        self.save_hyperparameters()
        self.net = self.make_net()
        self.target_net = self.make_net()
        self.buffer = ReplayBuffer(replay_size)
        self.agent = Agent(Corridor(), self.buffer)
        self.total_reward = self.episode_reward = 0.0
        self.n_episodes = 0
        for _ in range(warm_start):
            self.agent.play_step(self.net, 1.0, "cpu")

    @staticmethod
    def make_net():
        return nn.Sequential(nn.Linear(N_CELLS, 32), nn.ReLU(), nn.Linear(32, 2))

    def forward(self, x):
        return self.net(x)

    def dqn_loss(self, batch):
        states, actions, rewards, dones, new_states = batch
        values = self.net(states).gather(1, actions.long().unsqueeze(-1)).squeeze(-1)
        with torch.no_grad():
            new_values = self.target_net(new_states).max(1)[0]
            new_values[dones] = 0.0
        return F.mse_loss(values, new_values * self.hparams.gamma + rewards.float())

    def training_step(self, batch, batch_idx):
        epsilon = max(0.05, 1.0 - self.global_step / 150)
        reward, done = self.agent.play_step(self.net, epsilon, self.device)
        self.episode_reward += reward
        loss = self.dqn_loss(batch)
        if done:
            self.total_reward, self.episode_reward = self.episode_reward, 0.0
            self.n_episodes += 1
        if self.global_step % self.hparams.sync_rate == 0:
            self.target_net.load_state_dict(self.net.state_dict())
        self.log_dict({"reward": reward, "train_loss": loss, "epsilon": epsilon})
        self.log("total_reward", self.total_reward, prog_bar=True)
        self.log("steps", float(self.global_step), logger=False, prog_bar=True)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.net.parameters(), lr=self.hparams.lr)

    def train_dataloader(self):
        return DataLoader(PlayedDataset(self.buffer, self.hparams.samples), batch_size=self.hparams.batch_size)


if __name__ == "__main__":
    pl.seed_everything(4)
    model = DQN()
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=60, logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.fit(model)
    metrics = {name: value.item() for name, value in trainer.callback_metrics.items()}
    print(json.dumps({**metrics, "episodes": model.n_episodes, "global_step": trainer.global_step}))
