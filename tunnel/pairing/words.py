# SPDX-License-Identifier: GPL-2.0-or-later
"""The words that codes are made of: 512, so that each carries nine bits.

Common English words of four to nine letters, chosen by hand to be told apart on a bad telephone line: no two differ by
only one letter, and none has another spelling or a homophone.
"""

from __future__ import annotations

_TEXT = """
acorn actor adobe agent album alcove alder almond alpine amber anchor ankle anthem apple apron arcade arrow
ascot atlas attic autumn avocado axiom azure badge bagel bakery ballad bamboo banjo barley barrel basin basket
beacon beaver beetle bench bicycle birch biscuit bishop blanket blossom bonfire border bottle boulder bracket
brandy bread breeze brick bridge bronze broom bubble bucket buffalo bugle bumper butter button cabin cactus
camel camera canal candle canoe canvas canyon captain caravan carbon cargo carpet carrot castle catfish cedar
cello chalk channel chapel cherry chimney cider cinema circus citrus clay clover cobalt cobra cocoa coffee comet
compass copper coral corner cottage cotton cradle crater crayon cricket crimson crocus crystal cupboard curtain
cushion cypress daffodil dagger daisy dancer decade delta denim depot desert diamond diesel dolphin domino
dragon drawer drizzle drum duchess dungeon dustpan eagle echo eclipse elbow elephant elixir emerald emperor
engine epoch estate evening fabric falcon famous farmer fender fennel ferry festival fiddle figure flagon
flannel flask flute forest fossil fragile freckle frigate frost furnace gadget galaxy gallery garden garlic
garnet gazelle geyser ginger giraffe glacier glider goblet gondola gopher gorilla granite grape gravel guitar
gypsum habitat hammer hammock hamster harbor harvest hatchet hazel heather helmet herald hermit heron hickory
hollow honey horizon hornet hotel hunter hydrant iceberg icon igloo indigo inkwell insect island ivory jacket
jaguar jasmine jelly jersey jigsaw jockey journey jubilee juggler jungle juniper kangaroo kayak kernel kettle
kidney kimono kingdom kitchen kiwi koala lacquer ladder lagoon lantern lasso lattice laundry lemon lentil
leopard library lilac lizard lobster locust lotus lumber lunar lyric magnet mallard mango mantle marble margin
market marmot meadow medal melon mentor meteor midnight mineral mirror mitten monarch monkey mosaic mountain
muffin museum musket mustard napkin nebula nectar needle nephew neutron nickel noodle north nougat nucleus
nugget nutmeg oasis oatmeal obelisk ocean octave octopus olive omelet onion opera orange orbit orchard orchid
oregano osprey otter outpost oxygen oyster paddle palace pancake panther papaya paper parade parcel parsley
pastry patrol peacock peanut pebble pelican pencil penguin pepper perfume piano pickle picnic pigeon pilgrim
pilot pirate pixel planet plaster platinum plaza polygon poncho poplar postcard potato pottery powder prairie
pretzel prism pulley pumpkin puppet purple puzzle pyramid python quarry quartz quiver rabbit radar radish raft
rainbow raisin ranger ravioli razor recipe reef regatta ribbon ripple river robin rocket rooster rosemary rubber
ruby rudder runway saffron sailor salad salmon sandal sapphire sardine satin saturn sausage scarlet school
scooter scroll season secret sequoia shadow sheriff shovel silver siren sketch slipper snorkel soccer sonnet
sparrow spiral sponge squirrel stadium statue steeple stirrup stubble summit sunset swallow symbol syrup tablet
tadpole talcum tandem target tavern teapot temple tennis texture thimble thunder ticket tiger timber tomato
topaz torch tornado tortoise toucan tractor treacle trellis trident trumpet tulip tundra tunnel turbine turnip
turtle tuxedo twilight umbrella unicorn uniform upland urchin vacuum valley vanilla velvet verdict village
vinegar violet viper visitor volcano voyage vulture waffle wagon walnut walrus waltz warbler wardrobe water
weasel whale whisker wicker widget wigwam willow window winter wombat wonder woodland wrinkle yacht yellow zebra
zeppelin zigzag zinc zipper
"""

WORDS = tuple(_TEXT.split())
