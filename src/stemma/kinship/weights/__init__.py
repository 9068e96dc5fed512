"""The weights axis: order and contents of units, maps between models, layouts, and the decision."""
