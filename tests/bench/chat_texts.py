"""What the friends of ``chats.py`` say: templates of facts, and talk around them."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of fact: how it is told and asked (``{k}``, ``{a}`` the topic, ``{v}`` what is new, ``{n}`` who), topics
    as ``said/asked``, and values. Or in two turns: the friend asks ``back``, ``later`` answers without the topic."""

    told: str
    asked: str
    topics: str
    values: str
    back: str = ""
    later: str = ""


_WHEN = "yesterday|last Tuesday|two weekends ago|on the 3rd of May|last month|the week before my birthday|this morning"
FACTS = [
    Kind(
        "I went to {k} {v} and it was so loud.|So {v} I finally made it to {k}!",
        "When did {n} go to {k}?|When did {n} attend {k}?",
        "a beekeepers' fair/the fair of the beekeepers|the poetry slam/the poetry event|"
        "a council meeting/the council meeting|"
        "the railway museum/the museum of trains|the jazz festival/the festival of jazz",
        _WHEN,
        "Did you make it to {k} in the end?",
        "I did! It was {v}, and I stayed far too long.",
    ),
    Kind(
        "We adopted {k}, and the kids named it {v}.|Meet {v}, {k} who moved in with us!",
        "What is the name of {n}'s {a}?|What did {n} call the {a}?",
        "a hamster/hamster|a kitten/cat|a rescue dog/dog|a pair of budgies/birds|a tortoise/turtle",
        "Biscuit|Captain Noodle|Pepper|Gherkin|Mr Tibbs|Tofu|Waffles",
        "How is {k} settling in? Does it have a name yet?",
        "{v}! My youngest insisted.",
    ),
    Kind(
        "I've been doing {k} for {v} now, it keeps me sane.|{v} of {k} already, can you believe it?",
        "How long has {n} been practising {a}?|For how long has {n} done {a}?",
        "calligraphy/fine handwriting|running in the mornings/jogging|judo/judo|"
        "the trombone/the trombone|sourdough baking/making bread",
        "eleven years|three months|about a decade|half a year|two winters|nine weeks",
        "How long have you been at it, {k} I mean?",
        "Oh, must be {v}. Time flies.",
    ),
    Kind(
        "My {k} gave me {v}, I treasure it.|This is {v}, a present from my {k}.",
        "What did {n} get from the {a}?|Which gift did {n} receive from the {a}?",
        "grandma/grandmother|husband/spouse|students/pupils|pen pal in Chile/friend from Chile|godfather/godfather",
        "a brass compass|a chess set|an old atlas|a quilt|a leather notebook|a fountain pen",
        "That's pretty! Is it from your {k}?",
        "Yes, {v}, and I never leave home without it.",
    ),
    Kind(
        "I'm thinking about {v} because of {k}.|After {k} I decided on {v}.",
        "What did {n} decide after {a}?|What does {n} want to do because of {a}?",
        "the layoffs/losing the job|my surgery/the operation|that carpentry course/the course|"
        "dad's stroke/the illness|"
        "the move/moving house",
        "a job with the coast guard|opening a little shop|going back to university|moving to an island|"
        "writing a memoir",
        "How do you feel after {k}, any plans?",
        "Clearer than ever. I'm going for {v}.",
    ),
    Kind(
        "Took the family to {k} and we {v}.|We drove out to {k} with the kids and {v}.",
        "What did {n} do with the family at {a}?|What happened on {n}'s trip to {a}?",
        "the lake/the lake|the canyon/the canyon|the science museum/the museum|the beach/the seaside|"
        "the woods/the forest",
        "counted forty herons|baked potatoes in the fire|lost a shoe in the mud|got completely lost|swam until dark",
        "And how was {k}? Did the kids like it?",
        "They loved it. We {v}, nobody wanted to leave.",
    ),
    Kind(
        "The doctor says my {k} needs {v}.|Because of my {k} I have to do {v} now.",
        "What does {n} need for the {a}?|What did the doctor tell {n} about the {a}?",
        "knee/knee injury|back/back pain|allergies/allergy|ankle/sprained ankle|migraine/headaches",
        "six weeks of rest|an operation|physiotherapy twice a week|new tablets|a strict diet|swimming instead of sport",
        "How is the {k}? Any better?",
        "Not really, they want {v}.",
    ),
    Kind(
        "I'm reading {v} at the moment, {k} told me about it.|{k} pressed {v} into my hands and I can't put it down.",
        "Which book did {a} recommend to {n}?|What is {n} reading on the advice of {a}?",
        "my book club/the book club|our librarian/the librarian|a colleague/someone at work|Aunt Bea/Aunt Bea|"
        "my son/the son",
        "The Salt Lanterns|A Year of Small Rooms|Nothing But Herons|The Cartographer's Wife|Becoming Winter",
        "Are you still reading what {k} gave you?",
        "Yes! {v}, it's wonderful.",
    ),
    Kind(
        "I entered {k} and came {v}.|Results of {k} are in: I came {v}!",
        "How did {n} do in {a}?|What place did {n} reach in {a}?",
        "the baking contest/the baking competition|the half marathon/the race|the pub quiz/the quiz|"
        "the chess league/chess|"
        "the dance-off/the dance competition",
        "third|dead last|first out of forty|second in my age group|somewhere in the middle",
        "Tell me, how did {k} go?",
        "You're talking to someone who came {v}!",
    ),
    Kind(
        "At work I got put in charge of {k}, starting {v}.|They want me to lead {k} from {v}.",
        "When does {n} start leading {a}?|From when is {n} responsible for {a}?",
        "the youth programme/the programme for young people|a new branch/the new office|"
        "the website relaunch/the website|"
        "the night shift/the nights|our charity drive/the fundraising",
        "January|next week|the end of the summer|Monday|after the holidays",
        "Is it official now with {k}?",
        "It is! I begin {v}.",
    ),
    Kind(
        "For {k} I cooked {v} and everyone wanted the recipe.|I made {v} for {k}.",
        "What did {n} make for {a}?|Which dish did {n} cook for {a}?",
        "the potluck/the shared dinner|mum's 70th/the mother's birthday|the neighbours/the people next door|"
        "Thanksgiving/the holiday meal|our anniversary/the wedding anniversary",
        "a coconut curry|stuffed peppers|my grandmother's dumplings|a four-layer cake|smoked trout|lentil stew",
        "What did you serve at {k}?",
        "Just {v}, but it was gone in minutes.",
    ),
    Kind(
        "Growing up in {v}, I always had {k}.|When I was little, back in {v}, we had {k}.",
        "Where did {n} live when there was {a}?|In which place did {n} grow up with {a}?",
        "a piano in the kitchen/the piano|horses/the horses|a treehouse/the house in the tree|no television/no TV|"
        "five brothers around/five brothers",
        "Tromsø|a mining town|the Azores|Nairobi|the north of Wales|Montreal",
        "You had {k}? Where was that?",
        "In {v}, of all places. Feels like another life.",
    ),
    Kind(
        "My {k} broke down, so {v}.|Disaster: the {k} died on me and {v}.",
        "What did {n} do when the {a} broke?|What happened after {n}'s {a} failed?",
        "car/vehicle|laptop/computer|washing machine/washer|phone/mobile|boiler/heating",
        "I borrowed one from my boss|I fixed it myself with a video|we bought a second-hand one|"
        "I had to take the bus for days",
        "Is your {k} still acting up?",
        "It gave up, and {v}.",
    ),
    Kind(
        "I painted {k} and put {v} in it, it took a month.|Look at {k} I finished, the {v} took ages!",
        "What is on {n}'s {a}?|What does {n}'s {a} show?",
        "a mural/wall painting|a canvas/picture|a vase/piece of pottery|a banner/poster|the nursery wall/baby's room",
        "a sunrise over reeds|two white horses|a parade of snails|a lighthouse in a storm|a sleeping fox",
        "I saw {k} you posted! What's on it?",
        "Thanks! It has {v}, you have to look closely.",
    ),
    Kind(
        "I met {v} through {k}, we clicked at once.|There's someone I met at {k}: {v}.",
        "Who did {n} meet at {a}?|Whom does {n} know from {a}?",
        "the climbing hall/the climbing gym|my language class/the language lessons|the dog park/the park for dogs|"
        "church/church|"
        "my sewing circle/the sewing group",
        "a nurse called Farah|two sisters from Peru|an old sailor named Gus|a drummer, Kai|a widow who paints",
        "Any nice people at {k}?",
        "Yes, {v}, we had coffee after.",
    ),
    Kind(
        "I can't stand {k}, honestly, I prefer {v}.|Give me {v} over {k} any day.",
        "What does {n} like better than {a}?|What does {n} prefer to {a}?",
        "horror films/scary movies|crowded gyms/the gym|city holidays/trips to cities|coffee/coffee|"
        "pop music/the charts",
        "quiet documentaries|long hikes|a hammock and a book|ginger tea|Bach and old folk songs|rowing alone",
        "You and {k}, any chance?",
        "Ha, never. It's {v} for me.",
    ),
    Kind(
        "We're planning {k} and it'll be {v}.|The plan for {k} is set: {v}!",
        "What are {n}'s plans for {a}?|What is planned for {n}'s {a}?",
        "the honeymoon/honeymoon|the summer break/summer holidays|Mum's retirement/the mother's retirement party|"
        "the reunion/family gathering|the sabbatical/time off from work",
        "a sleeper train to the Arctic|two weeks in a camper van|a boat on the canal|volunteering on a farm|"
        "a quiet cabin",
        "Did you settle on anything for {k}?",
        "Finally, yes: {v}.",
    ),
    Kind(
        "I spent {v} on {k} and I don't regret it.|{k} cost me {v}, but still.",
        "How much did {n} pay for {a}?|What did {n} spend on {a}?",
        "new running shoes/the trainers|a second-hand cello/the cello|concert tickets/the concert|a kayak/the boat|"
        "a garden shed/the hut in the garden",
        "nearly four hundred euros|my whole bonus|only thirty bucks|more than I'll admit, a thousand|sixty pounds",
        "Was {k} expensive?",
        "Well, {v}. Don't tell anyone.",
    ),
    Kind(
        "I want to quit {k} because {v}.|I've stopped {k}: {v}.",
        "Why did {n} give up {a}?|What was {n}'s reason to stop {a}?",
        "social media/being online|eating meat/meat|the choir/singing in the choir|smoking/cigarettes|"
        "my evening job/the second job",
        "it ate all my evenings|my daughter asked me to|I saw a film about it|the doctor scared me|I felt judged there",
        "What's the story with {k}?",
        "I'm done. {v}, you know.",
    ),
    Kind(
        "My {k} just {v}, I'm bursting with pride.|Big news, my {k} {v}!",
        "What did {n}'s {a} achieve?|What happened to {n}'s {a}?",
        "daughter/girl|nephew/nephew|little brother/younger brother|goddaughter/goddaughter|flatmate/roommate",
        "passed the driving test|got into medical school|won a scholarship|had twins|published a first story|"
        "learned to swim",
        "What's new with your {k}?",
        "Get this: that kid just {v}!",
    ),
]
# What one person has or did several of; the question wants all of them.
LISTS = [
    (
        "My {v} lessons have begun.|Back at {v} evening class.",
        "Which languages is {n} learning?",
        "Welsh|Japanese|Portuguese",
    ),
    (
        "We went {v} with the kids.|{v} with the little ones, exhausting!",
        "What has {n} done with the children?",
        "bowling|sledging|fossil hunting",
    ),
    (
        "Tried {v} at last.|Had a go at {v}, never again.",
        "Which sports has {n} tried?",
        "archery|fencing|curling",
    ),
    (
        "I watched {v} twice.|{v} was on at the cinema.",
        "Which films has {n} seen?",
        "Glass Harbour|The Mild Winter|Eleven Umbrellas",
    ),
    (
        "I finished knitting {v}.|My needles are worn out after {v}.",
        "What has {n} made out of wool?",
        "a tea cosy|mittens|a blanket",
    ),
    (
        "{v} is on my list for sure.|One day I'll live in {v}.",
        "Which countries would {n} like to see?",
        "Iceland|Bolivia|Japan",
    ),
]
REACT = [
    "Wow, {o}, that's amazing!",
    "Oh no, I'm sorry to hear that.",
    "Aww, that's so sweet.",
    "Haha, typical you!",
    "Totally get that.",
    "That must have been something.",
    "Good for you, {o}, you deserve it.",
    "Thanks, {o}, that's kind of you.",
    "Yeah, I hear you.",
    "So cool!",
]
FILL = [
    "The weeks just fly by, but I can't complain.",
    "Makes me wonder where the year went.",
    "Work never stops, my inbox is on fire.",
    "A good long walk makes such a difference.",
    "Honestly, some days I just want to stay in bed.",
    "The kids are growing so fast.",
    "It's been raining for days and the whole house is restless.",
    "I try to read a little every evening.",
    "Can't wait to catch up properly, it's been too long.",
    "We did a lot last weekend and I still need a break.",
    "At least my cat keeps me company.",
    "I never thought I would go that far, when I think of how it began.",
]
ASK = [
    "What's new with you?",
    "How about you, anything exciting going on?",
    "How long has it been since we talked?",
    "What do you do to relax?",
    "Got any plans for the weekend?",
    "When did you last take a day off?",
    "How's the family?",
    "What motivates you these days?",
]
BYE = ["Bye, {o}, talk soon!", "Take care, {o}!", "Let's do this again.", "Gotta run, the kids need me."]
HELLO = ["Hey {o}, are you there?", "Hi {o}, how are you doing?", "{o}! Good to hear from you.", "Morning, {o}!"]
ECHO = [
    "{K}, really? Tell me more!",
    "I love that about {k}.",
    "{K} sounds like a lot, but in a good way.",
    "You and {k}!",
]
AGAIN = ["Thinking of {k} again today.", "{K} is still on my mind.", "By the way, how's it going with {k}?"]
