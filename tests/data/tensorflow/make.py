"""How the checkpoints in this folder were made: TensorFlow 2.21 writes them, and reads the values that are expected."""

import numpy as np
import tensorflow as tf

rng = np.random.default_rng(0)


class Net(tf.Module):
    def __init__(self):
        super().__init__()
        self.w = tf.Variable(rng.normal(size=(4, 6)).astype("f4"))
        self.b = tf.Variable(rng.normal(size=6).astype("f4"))
        self.half = tf.Variable(tf.cast(rng.normal(size=(3, 2)).astype("f4"), tf.bfloat16))
        self.n = tf.Variable(3, dtype=tf.int64)
        self.text = tf.Variable("hello")
        self.flag = tf.Variable([True, False])


tf.train.Checkpoint(model=Net(), step=tf.Variable(7)).save("model.ckpt")
with tf.Graph().as_default():
    tf.compat.v1.disable_resource_variables()
    for i in range(40):
        tf.compat.v1.get_variable(f"layer{i}/kernel", initializer=rng.normal(size=(5, 3)).astype("f4"))
    normal, halves = tf.compat.v1.random_normal_initializer(seed=1), tf.compat.v1.fixed_size_partitioner(2)
    tf.compat.v1.get_variable("emb", shape=(7, 3), partitioner=halves, initializer=normal)
    with tf.compat.v1.Session() as session:
        session.run(tf.compat.v1.global_variables_initializer())
        tf.compat.v1.train.Saver().save(session, "./model.ckpt", global_step=10)
for name, prefix in (("ck", "./model.ckpt-1"), ("v1", "./model.ckpt-10")):
    reader = tf.train.load_checkpoint(prefix)
    values = {k: reader.get_tensor(k) for k in reader.get_variable_to_shape_map()}
    wide = {
        k: np.asarray(v, "f4") if v.dtype.name == "bfloat16" else v for k, v in values.items() if hasattr(v, "dtype")
    }
    np.savez(f"{name}.npz", **{k.replace("/", "|"): v for k, v in wide.items()})
